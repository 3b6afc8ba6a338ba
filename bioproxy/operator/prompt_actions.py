"""What an operator does with a prompt or a conversation: forget it, keep it, have it warmed up.

Templates are configured, so they come and go with the configuration.  What was learned from requests has no such place,
and an operator needs another way to say "this must go" or "this must stay".  A conversation may be removed because of
what was said in it, and a prompt because no client sends it any more.

Each action is done when the method returns, and its result is a status of HTTP and a sentence: the operator's port
(`bioproxy.operator.admin`) sends both.  None of them waits for llama-server.  So on Twisted, where other code runs only
at an ``await``, no request can be half way through the files that are removed here.  A request that has read such a
file already goes on: its tokens are in the slot by then.

Who may call these is decided before (`bioproxy.operator.host_check`).  Does not know HTTP beyond the numbers.
"""

from __future__ import annotations

from twisted.logger import Logger

from bioproxy.prompts.catalogue import Catalogue
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.shared.shelf import SharedShelf
from bioproxy.slot_files.shelf import Shelf
from bioproxy.warmup.forgetting import Forgetting
from bioproxy.warmup.schedule import Schedule

Result = tuple[int, str]
"""A status of HTTP, and a sentence for the operator."""


class PromptActions:
    """The actions.  Keeps no state of its own.

    Invariant: no action touches the files of a configured template, apart from `pin` for its conversation.
    """

    log = Logger()

    def __init__(
        self,
        poller: TemplatePoller,
        catalogue: Catalogue,
        schedule: Schedule,
        forgetting: Forgetting,
        shelf: Shelf,
        shared: SharedShelf,
    ) -> None:
        """Act on the `schedule` of warm-ups, on the files of `shelf` and of the `shared` one, and by `forgetting`.

        `poller` knows which names are templates, and `catalogue` which are prompts.
        """
        self._poller = poller
        self._catalogue = catalogue
        self._schedule = schedule
        self._forgetting = forgetting
        self._shelf = shelf
        self._shared = shared

    def forget(self, id: str) -> Result:
        """Forget a learned prompt, with its text and its files, or a conversation with its file.

        409 for a template, 404 for an unknown id, 500 if the record cannot be written, which says so.  What the slot
        holds stays there until another request takes the slot.  A prompt may be learned anew from later requests.
        """
        if id in self._poller.templates:
            return 409, f"{id} is a template, and templates are removed from the configuration"
        # The text goes first, then the record's entries, then the files: a crash in between leaves files that nothing
        # names, and those are removed at the next start.
        #
        # Also the files of a template that is not configured any more: its id is unknown to the catalogue, not to the
        # record.  An id of the path is only compared with known ones, so it cannot lead to any other file.
        try:
            found = self._forgetting.forget_learned(id)
        except OSError as error:
            return self._failed(error)
        # An operator who has a text removed wants it gone from the shared shelf, too.  From there a prompt would be
        # learned again with the next request, and a conversation restored.
        if not self._shared.forget(id) and not found:
            return unknown(id)
        self.log.info("an operator had {id} forgotten", id=id)
        return 200, f"{id} is forgotten"

    def pin(self, id: str, pinned: bool) -> Result:
        """Have the files of an id stay whatever the limits are, or no longer.

        404 if it has no file, 500 if the record cannot be written.  Files that replace these are pinned, too.
        """
        # The pin is a part of the record's entry, so it is on the disk when this returns, and survives a restart.
        try:
            found = self._shelf.pin(id, pinned)
        except OSError as error:
            return self._failed(error)
        if not found:
            return 404, f"there is no file of {id}"
        return 200, f"{id} is pinned and stays" if pinned else f"{id} is not pinned any more"

    def warm(self, id: str) -> Result:
        """Have a prompt warmed up next.  202 at once: the warm-up waits until no user needs the slot.

        409 for a conversation, which only its client can go on with; 404 for an unknown id.
        """
        # Only noted here.  The warmer looks twice a second for what there is to do.
        if id in self._catalogue:
            self._schedule.want(id)
            return 202, f"{id} is warmed up next"
        # Learned prompts and conversations have names of the same form, so an operator may well mistake one for the
        # other.
        if self._shelf.has_conversation(id):
            return 409, f"{id} is a conversation, and only prompts are warmed up"
        return unknown(id)

    def warm_template(self, name: str) -> Result:
        """Have a template warmed up next: as `warm`, but 404 for a prompt that is no template."""
        # For an operator who does not trust a slot file, or does not want to wait for the pause after failures.
        if name not in self._poller.templates:
            return no_template(name)
        self._schedule.want(name)
        return 202, f"template {name} is warmed up next"

    def _failed(self, error: OSError) -> Result:
        """Return what is said where the record of slot files cannot be written."""
        self.log.error("the record of slot files cannot be written: {error}", error=error)
        return 500, f"the record of slot files cannot be written: {error}"


def unknown(id: str) -> Result:
    """Return the error text for an id that names nothing."""
    return 404, f"there is no prompt or conversation {id}"


def no_template(name: str) -> Result:
    """Return the error text for a name that is no template's."""
    return 404, f"there is no template {name}"
