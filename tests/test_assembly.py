"""The wiring: all parts are made, from the bottom to the top, and making them touches nothing."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from bioproxy.assembly.assemble import assemble
from bioproxy.assembly.outside import Outside
from bioproxy.assembly.parts import OperatorParts, Parts, RequestParts, SlotParts, WarmupParts
from bioproxy.llama.connections import Agents
from bioproxy.settings.configuration import Settings
from tests.support.folders import FolderTest

GROUPS = SlotParts, WarmupParts, RequestParts, OperatorParts


class Untouchable:
    """Stands for the ways to llama-server: any use of one is an error."""

    def request(self, *_: Any) -> Any:
        """Fail."""
        raise AssertionError("a request was sent")


def refuse(*_: Any) -> Deferred[Any]:
    """Stand for threads and processes, likewise."""
    raise AssertionError("something was done elsewhere")


class Assembly(FolderTest):
    """`assemble`, with a world outside that must not be used."""

    def make(self) -> tuple[Parts, Clock]:
        """Make all parts, with settings none of whose files and folders exists; return them and their clock."""
        missing = self.folder / "missing"
        names = ("slot_save_path", "state_dir", "shared_shelf", "api_key_file", "llama_api_key_file")
        paths: dict[str, Any] = {name: missing / name for name in names}
        settings = Settings(**paths, prefixes={"@code": missing / "x.txt"})
        agent: Any = Untouchable()
        clock = Clock()
        outside = Outside(Agents(agent, agent, agent, agent, agent), refuse, refuse, refuse, free_space=refuse)  # type: ignore[arg-type]
        return assemble(settings, clock, outside), clock

    def test_touches_nothing(self) -> None:
        """Making the parts reads and writes no file, sends nothing, and sets no timer."""
        _, clock = self.make()
        self.assertEqual([], list(self.folder.iterdir()))
        self.assertEqual([], clock.getDelayedCalls())

    def test_groups(self) -> None:
        """Each part belongs to one group, and what belongs to none are the rounds, which are no parts by themselves."""
        names = [field.name for group in GROUPS for field in fields(group)]
        self.assertEqual(len(names), len(set(names)))
        rounds = {field.name for field in fields(Parts)} - set(names)
        self.assertEqual(
            {"watching", "warming", "sharing", "publishing", "uses_writing", "history_taking"},
            rounds,
        )

    def test_one_of_each(self) -> None:
        """No part is made twice: what two groups share is the same object."""
        parts, _ = self.make()
        # Each is a user of the gate, and made by another module.
        self.assertIs(parts.gate, vars(parts.proxy)["_gate"])
        self.assertIs(parts.gate, vars(parts.warmer)["_gate"])

    def test_services_have_names(self) -> None:
        """What makes rounds has a name of its own in the tree of services and in the log."""
        parts, _ = self.make()
        rounds = (parts.watching, parts.polling, parts.warming, parts.sharing, parts.publishing, parts.uses_writing)
        self.assertEqual(
            {"watch", "poller", "warmer", "shared shelf", "publishing", "uses", "history"},
            {each.name for each in (*rounds, parts.history_taking)},
        )
