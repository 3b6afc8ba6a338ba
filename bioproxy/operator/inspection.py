"""Finds out what there is to advise on llama-server.

`Advisor` serves the running proxy: once for each process of llama-server it puts together what is known anyway, and
logs it.  `survey` is the part of ``--check`` that goes out and asks.  It uses the same calls as the proxy does, so that
one cannot reach llama-server where the other can.

Twisted's calls need its event loop, the reactor, and while twistd reads its options that does not run yet.  `now` runs
it for the survey alone.  A reactor runs once in a process; that is enough, because after a check the process ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from bioproxy.llama.api import LlamaApi, Props
from bioproxy.llama.connections import Agents, check_ca_file
from bioproxy.llama.prefix_tokens import DoesNotFit, Prefixes
from bioproxy.llama.upstream import Upstream
from bioproxy.operator import llama_flags as flags
from bioproxy.operator.advice import Advice, Seen, advice, of_trouble
from bioproxy.prompts.prompt_shape import BARE
from bioproxy.runtime.clock import install
from bioproxy.runtime.errors import ConfigError, LlamaCallFailed, LlamaError
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import Settings
from bioproxy.slot.folder import SlotFolder

FIRST = 5.0
"""Seconds that llama-server may take for its first sign of life: it answers at once, however busy it is."""

PATIENCE = 60.0
"""Seconds that all of a survey may take: counting the tokens of many long templates takes some."""

TRIAL = "bioproxy-check.bin"
"""The slot file that `survey` has llama-server write, and removes again."""

HERE = {"localhost", "127.0.0.1", "::1"}

Say = Callable[[str | Advice], None]
"""Takes a line for a person, or an advice."""


class Advisor:
    """Logs what there is to advise, once, and again when it is something else."""

    log = Logger()

    def __init__(self, url: str, folder: Path | None, proc: Path = Path("/proc")) -> None:
        self._url = url
        self._folder = folder
        self._proc = proc
        self._told: list[Advice] = []

    def look(self, props: Props, files: bool | None) -> list[Advice]:
        """Return the advice for a llama-server with these properties; `files`: does it keep slot files?"""
        parts = urlsplit(self._url)
        near = parts.hostname in HERE
        arguments = window = None
        if near:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            arguments = flags.command_line(port, props.model, self._proc)
            window = flags.sliding_window(props.model)
        return list(advice(Seen(props, files, self._folder, near, arguments, window)))

    def tell(self, props: Props, files: bool | None) -> None:
        """Log the advice, unless it is the same as the last time."""
        found = self.look(props, files)
        if found != self._told:
            for each in found:
                say = self.log.warn if each.serious else self.log.info
                say("llama-server at {url}: {what} (what helps: {fix})", url=self._url, what=each.what, fix=each.fix)
        self._told = found

    def what_helps(self, error: Exception) -> str:
        """Return what an operator can do about a failed call to llama-server."""
        return of_trouble(error).fix


async def survey(
    llama: LlamaApi,
    advisor: Advisor,
    folder: SlotFolder,
    texts: Iterable[tuple[str, str]],
    say: Say,
    clock: IReactorTime,
) -> None:
    """Ask llama-server, and `say` what it tells and what to advise.

    `texts` are the templates' names and prefix texts.  Nothing here uses the slot or changes what it holds.  Fails with
    `TimeoutError` only.
    """
    try:
        await Deferred.fromCoroutine(llama.health()).addTimeout(FIRST, clock)
        props = await llama.props()
        say(f"ok: it is up: {props.model}, build {props.build}, {props.context} tokens of context")
        # A sleeping one would load its model to answer anything else.
        files = None if props.asleep else await llama.slot_files_enabled()
        for each in advisor.look(props, files):
            say(each)
        if props.asleep:
            return say("note: it is asleep, and is not asked more, which would wake it")
        if files and folder.path is not None:
            await _try_saving(llama, folder, folder.path, say)
        prefixes = Prefixes(llama)
        for name, text in texts:
            await _count(prefixes, name, text, props, say)
    except LlamaCallFailed as error:
        say(of_trouble(error))


async def _try_saving(llama: LlamaApi, folder: SlotFolder, path: Path, say: Say) -> None:
    """Have llama-server write a slot file of nothing, and see whether it arrives in our folder."""
    witness = await llama.witness()
    if witness is None or witness.busy or witness.tokens:
        # All of what it holds would be written, perhaps gigabytes.
        return say("note: whether slot files can be written was not tried: the slot is in use")
    try:
        await llama.save(TRIAL)
    except LlamaError as error:
        return say(
            Advice(
                f"it cannot write slot files: {error}",
                "let the user who runs llama-server write into the folder of its --slot-save-path; has the disk room?",
            )
        )
    if folder.written_at(TRIAL) is None:
        return say(
            Advice(
                f"it wrote {TRIAL}, but not into {path}",
                "set slot_save_path to the folder of its --slot-save-path, as it is called on this machine"
                " (and remove the file there)",
            )
        )
    if not folder.remove(TRIAL):
        return say(Advice(f"bioproxy may not remove files in {path}", "let it write there; and remove " + TRIAL))
    say("ok: it writes slot files where slot_save_path says")


async def _count(prefixes: Prefixes, name: str, text: str, props: Props, say: Say) -> None:
    """Say how much of the context a template takes."""
    try:
        tokens = await prefixes.tokens(text, BARE, props.context, name)
    except DoesNotFit as error:
        say(Advice(f"template {name}: {error}", "make it shorter, or the context larger (-c)"))
    except LlamaError as error:
        say(Advice(f"template {name}: its tokens cannot be counted: {error}", "is this build of llama-server old?"))
    else:
        say(f"ok: template {name} takes {len(tokens)} of {props.context} tokens")


def now(settings: Settings, texts: Iterable[tuple[str, str]], say: Say, reactor: Any = None) -> None:
    """Run the reactor for a survey.  Raises `KeyboardInterrupt` if somebody pressed Ctrl-C meanwhile."""
    if reactor is None:
        from twisted.internet import reactor as real

        install(real)
        reactor = real
    url, path = settings.llama_url, settings.slot_save_path
    keys = ApiKeys(settings.api_key_file, settings.llama_api_key_file)
    try:
        keys.read()
        check_ca_file(settings.llama_ca_file)
        agents = Agents.over_network(reactor, url, settings.llama_ca_file)
    except ConfigError:
        return say("note: it is not asked: what is wrong here comes first")
    ended: list[Any] = []
    interrupted: list[bool] = []

    def begin() -> None:
        llama = LlamaApi(Upstream(url, agents, reactor, keys))
        work = Deferred.fromCoroutine(survey(llama, Advisor(url, path), SlotFolder(path), texts, say, reactor))
        work.addTimeout(PATIENCE, reactor).addErrback(late)
        work.addBoth(finish)

    def finish(result: Any) -> None:
        if not interrupted:  # a reactor that stops closes its connections, which ends the survey, too
            ended.append(result)
            reactor.stop()

    def late(failure: Failure) -> None:
        failure.trap(TimeoutError)
        say(Advice("it does not answer in time", "if it stays so, start it again"))

    reactor.addSystemEventTrigger("before", "shutdown", interrupted.append, True)
    reactor.callWhenRunning(begin)
    reactor.run()
    if not ended:
        raise KeyboardInterrupt
    if isinstance(ended[0], Failure):
        ended[0].raiseException()
