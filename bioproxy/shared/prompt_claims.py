"""Sees to it that of several bioproxies one computes a prompt, and the others get its file.

When a template changes, it becomes due everywhere in the same two seconds.  Without an agreement each llama-server
would compute the same tokens for minutes.  So a warm-up begins with a *claim*, a lease with the name of the prompt and
of the model (`bioproxy.shared.leases`).  Who gets it computes; for all others the prompt is not due as long as the
holder lives, and when its file appears they fetch it.

The order of things closes the gaps:

* Before a claim: is the file there already?  Then it is fetched, and nothing is computed.
* After a claim: is it there *now*?  The holder before may have published and given up between the look and the claim.
* A claim is given up after the file was published, never before.  Otherwise there would be a moment with neither, in
  which another process begins to compute.

If a holder dies, its lease has no more beats, and another process takes over.  If the folder cannot be used, everybody
computes for itself, as without a shelf: a claim saves work, and nothing relies on it to be correct.

A model is part of the claim, since a file is of use only to the model that has written it.  Two bioproxies with
different models therefore compute the same prompt at the same time, as they must.

On Twisted: between two ``await`` of a coroutine others run, and may claim, release, or publish.  So what was asked
before an ``await`` is asked again after it, wherever it matters.

Does not know when a prompt is due, nor how it is computed.
"""

from __future__ import annotations

from twisted.logger import Logger

from bioproxy.llama.model_identity import Model
from bioproxy.prompts.prompt_shape import Key
from bioproxy.runtime.metrics import Metrics
from bioproxy.shared.claims import Claims
from bioproxy.shared.disk import Unusable
from bioproxy.shared.entry import model_name
from bioproxy.shared.fetching import Fetching
from bioproxy.shared.finding import Finding
from bioproxy.shared.local_files import LocalFiles
from bioproxy.shared.publishing import COPY_SECONDS
from bioproxy.shared.view import SharedView
from bioproxy.slot_files.snapshot import PREFIX


class PromptClaims:
    """The claims of this process on prompts.

    Invariant: a claim is given up only when it was released, and not in the moment of that but after what had been
    saved until then is published.
    """

    log = Logger()

    def __init__(
        self,
        view: SharedView,
        finding: Finding,
        claims: Claims,
        fetching: Fetching,
        local: LocalFiles,
        metrics: Metrics,
    ) -> None:
        """Claim prompts with `claims`, and fetch with `fetching` what somebody else has computed.

        `view` and `finding` are the shelf, `local` are the files of this process.
        """
        self._view = view
        self._finding = finding
        self._claims = claims
        self._fetching = fetching
        self._local = local
        self._metrics = metrics
        # Prompts whose claims are given up when their files are published.  A set: a prompt may be released several
        # times before that.
        self._released: set[str] = set()

    def is_computed_elsewhere(self, name: str) -> bool:
        """Tell whether another process has claimed a prompt and is alive.

        False while the folder cannot be used: then everybody computes for itself.
        """
        # From memory, because the schedule asks for each prompt twice a second.
        model = self._finding.model
        return model is not None and self._view.leases.holder_of(lease_key(name, model)) is not None

    async def claim(self, name: str, key: Key) -> bool:
        """Tell whether this process is to compute a prompt: nobody else has it, nor is computing it.

        A prompt that the shelf has is fetched, and one that nobody has claimed is claimed, until `release`.  Fires with
        true where the shelf cannot be used; never fails.  Cancelling stops waiting.
        """
        # Without certainty about the model there is no name for the lease.  `Warmer` finds the model out before. The
        # disk is asked, and not `SharedView.usable`, which needs a folder that was checked: the first claim may come
        # before the first round, and then the folder is checked below.
        model = self._finding.certain_model
        if model is None or not self._view.disk.usable:
            return True
        self._released.discard(name)
        # A look that is two seconds old will not do here: all processes see a changed template at about the same time.
        try:
            await self._view.check()
            await self._view.look()
            if await self._fetch(name, key):
                return False
            # Somebody else computes it.  The warmer goes on with another prompt, and asks again in its next round.
            if not await self._claims.take(lease_key(name, model)):
                return False
            # Between the look and the claim, somebody may have published it and given up the claim.  If so, the lease
            # is held for nothing, until the warmer releases it.
            await self._view.look()
            return not await self._fetch(name, key)
        except (Unusable, OSError):
            # Trouble with the disk, of either kind.  A prompt that is computed twice costs time; one that nobody
            # computes would stay cold.
            return True

    def release(self, name: str) -> None:
        """Have the claim of a prompt given up, if there is one, as soon as its file is published, if it was saved.

        Called when a warm-up has ended, however it did.  Only noted, because the warmer cannot wait for a disk.
        """
        if self._keys(name):
            self._released.add(name)

    def released(self) -> list[str]:
        """Return the prompts whose claims are to be given up when what was saved until now is published.

        To be asked before publishing begins, and each of them then handed to `give_up`.
        """
        return list(self._released)

    async def give_up(self, name: str) -> None:
        """Give up the claim of a prompt, unless it was claimed again meanwhile.  Fires and never fails."""
        # Asked again here, behind an ``await``: the warmer may have claimed the prompt once more while its file was
        # being copied.
        if name in self._released:
            self._released.discard(name)
            for key in self._keys(name):
                await self._claims.give_up(key)

    def _keys(self, name: str) -> list[str]:
        """Return the keys of this process's leases for a prompt: mostly one, more after a change of the model."""
        return [key for key in self._view.leases.mine if key.rpartition(".")[0] == name]

    async def _fetch(self, name: str, key: Key) -> bool:
        """Fetch a prompt that is not here; fire with whether that was done.  Fails as `Fetching.fetch`."""
        shared = self._finding.prompt(name, key)
        # Where the shelf has nothing, or the same as this process, there is nothing to be gained.
        # What is here and due nevertheless has to be computed, for example because its tokens are doubted.
        if shared is None or self._local.has(name, PREFIX, shared.snapshot):
            return False
        # No user waits for this, so the copy has all the time that it needs.
        if not await self._fetching.fetch(shared, COPY_SECONDS):
            return False
        # A warm-up that this process did not have to do: what operators have the shelf for.
        self._metrics.shared_warmups_saved.inc()
        self.log.info("{prompt}: fetched from the shared shelf", prompt=name)
        return True


def lease_key(name: str, model: Model) -> str:
    """Return the key of the lease for computing a prompt with a model."""
    # Processes with different models must not wait for each other: the file of one is of no use to the other.
    return f"{name}.{model_name(model)}"
