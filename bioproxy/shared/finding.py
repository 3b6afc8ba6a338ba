"""What of the shared shelf is of use to this process at this moment.

Three things must hold before a file of the shelf may be looked for: the folder can be used, it is known which model
runs, and the entry is for just that model, text and shape.  They are asked in one place, so that no caller forgets one
of them.

Which model runs may be *certain* or only *believed*: a llama-server that has slept loads its model again, mostly the
same one, and nobody can tell before its fingerprint is taken (`bioproxy.llama.model_identity`).  For a look-up a belief
will do, since what is found is a candidate.  To fetch a file or to claim a prompt it will not: the file might take the
place of a good one, and the claim would be for another model.  Those callers take `certain_model`.

Everything here is answered from memory, and nothing is awaited.  Does not know the disk, nor what is done with what was
found.
"""

from __future__ import annotations

from bioproxy.llama.model_identity import Model, ModelIdentity
from bioproxy.prompts.prompt_shape import Key
from bioproxy.shared.entry import SharedEntry
from bioproxy.shared.view import SharedView


class Finding:
    """The shelf, as seen through the model that runs.

    Invariant: nothing is found that is not for the model that runs, as far as that is known.
    """

    def __init__(self, view: SharedView, identity: ModelIdentity) -> None:
        """Look for files in `view`; `identity` tells which model runs."""
        self._view = view
        self._identity = identity

    @property
    def model(self) -> Model | None:
        """The model that is believed to run; `None` if none is, or if the folder cannot be used."""
        return self._identity.current if self._view.usable else None

    @property
    def certain_model(self) -> Model | None:
        """The model that runs, `None` if that is not certain.  Says nothing of the folder."""
        return self._identity.current if self._identity.certain else None

    def prompt(self, name: str, key: Key) -> SharedEntry | None:
        """Return the entry of a prompt with this text and shape for the model that runs; `None` if there is none."""
        # Compared by text and shape.  The id alone is a name, which may mean another text at another bioproxy.
        model = self.model
        return None if model is None else self._view.mirror.prompt(model, name, key)
