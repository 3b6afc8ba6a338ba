"""Asks llama-server how it is set up, and reports what could be better: `Advisor` and `survey`.

Two callers need that.  The running proxy has an `Advisor`: once for each process of llama-server it judges what the
proxy knows anyway, and logs it.  ``--check`` has `survey`, which sends requests of its own.  It sends them through the
same classes as the proxy (`Upstream`, `LlamaApi`), so that keys, certificates and errors are the same in both: a check
that succeeds proves that the proxy can reach llama-server, too.

The survey is a *coroutine*: it is written top to bottom, like blocking code, and each `await` gives control back to
Twisted's event loop until the answer is there.  A coroutine does nothing by itself; `bioproxy.operator.survey_run` runs
it for ``--check``.

Nothing here changes what the slot holds or wakes a sleeping llama-server.  The judgement itself is a pure function in
`bioproxy.operator.advice`, and how a finding is printed is decided in `bioproxy.operator.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bioproxy.llama.answers import Props
from bioproxy.llama.api import LlamaApi
from bioproxy.llama.prefix_tokens import DoesNotFit, Prefixes
from bioproxy.operator import llama_flags as flags
from bioproxy.operator.advice import Advice, Seen, advice, of_trouble
from bioproxy.prompts.prompt_shape import USER_MESSAGE_ONLY
from bioproxy.runtime.errors import LlamaCallFailed, LlamaError
from bioproxy.settings.kinds import port_of
from bioproxy.slot_files.folder import SlotFolder

FIRST = 5.0
"""Seconds that llama-server may take to answer `/health`.

It answers within milliseconds, however busy its slot is.  Half of it may be too short for a slow network; twice as much
makes an operator wait for a check of a server that is not there.
"""

TRIAL = "bioproxy-check.bin"
"""The slot file that `survey` has llama-server write, and removes again.  No template can have a file of this name."""

Say = Callable[[str | Advice], None]
"""Takes a finding: a line of text, which begins with ``ok:`` or ``note:``, or an advice."""


# Both of the following end in `bioproxy.operator.advice`:
#
#   running proxy   ProcessWatch.look  ->  Advisor.tell  ->  Advisor.look  ->  advice  ->  log
#   ``--check``     now  ->  survey    ->  Advisor.look  ->  advice  ->  say  ->  terminal


class Advisor:
    """Logs the advice on llama-server.

    The same list of advice is logged once, also if llama-server is restarted in between.  A list that differs from the
    one before is logged as a whole.
    """

    log = Logger()
    """Named in the text log as ``llama``, since that is what the advice is about."""

    def __init__(self, url: str, folder: Path | None, proc: Path = Path("/proc")) -> None:
        """Make an advisor on the llama-server at `url`.

        `folder` is the setting `slot_save_path`; `proc` is where Linux shows the processes, another folder in tests.
        """
        self._url = url
        self._folder = folder
        self._proc = proc
        # What was logged last.  `Advice` is a frozen dataclass, so lists of it can be compared.
        self._told: list[Advice] = []

    def look(self, props: Props, files: bool | None) -> list[Advice]:
        """Return the advice for a llama-server with these properties.

        `files` tells whether it keeps slot files; `None` if it was not asked.  Reads files under ``/proc`` and the
        beginning of the model's file, which takes a few milliseconds; that blocks the reactor, but only once for each
        process of llama-server.
        """
        near = flags.leads_here(self._url)
        # What only a llama-server on this machine shows, and stays unknown for all others.
        arguments = window = None
        if near:
            # A URL without a port has the default port of its scheme, and llama-server's flags always say the number.
            arguments = flags.command_line(port_of(self._url), props.model, self._proc)
            window = flags.sliding_window(props.model)
        # Unknown values are `None`, and `advice` says nothing about them.
        return list(advice(Seen(props, files, self._folder, near, arguments, window)))

    def tell(self, props: Props, files: bool | None) -> None:
        """Log the advice, unless it is the same as the last time.

        Called by the watch over llama-server when it has found another process of llama-server.
        """
        # What is unwise is usually so for as long as that process runs, so once is enough, and each look would be too
        # much: there is one every two seconds.
        found = self.look(props, files)
        # llama-server may be restarted every few minutes, by a supervisor for example, with the same flags each time.
        if found != self._told:
            # The subject of each sentence is llama-server, so its address stands in front.
            for each in found:
                say = self.log.warn if each.serious else self.log.info
                say("llama-server at {url}: {what} (what helps: {fix})", url=self._url, what=each.what, fix=each.fix)
        self._told = found


async def survey(
    llama: LlamaApi,
    advisor: Advisor,
    folder: SlotFolder,
    texts: Iterable[tuple[str, str]],
    say: Say,
    clock: IReactorTime,
) -> None:
    """Ask llama-server, and `say` what it answers and what to advise.

    `texts` are the templates' names and the texts before the message.  `clock` times the first answer.  Fires with
    `None` when all is said.  Fails with `TimeoutError` if `/health` is not answered in time; other failures of
    llama-server are said.  Cancelling closes the connection in use.
    """
    # In this order: first what costs llama-server nothing, then what changes no slot, and last what takes long.
    try:
        # A coroutine has no time limit of its own; a Deferred has `addTimeout`, which cancels it.
        await Deferred.fromCoroutine(llama.health()).addTimeout(FIRST, clock)
        # From here on llama-server is up, and the limit of the whole survey is enough.
        props = await llama.props()
        # What the operator can compare with what was meant to run: the model, the build, and the context of a slot.
        say(f"ok: it is up: {props.model}, build {props.build}, {props.context} tokens of context")
        # A llama-server that sleeps (--sleep-idle-seconds) loads its model to answer anything but the calls above.
        # The question is a restore with a name that is always refused, so nothing is read or changed.
        files = None if props.asleep else await llama.slot_files_enabled()
        for each in advisor.look(props, files):
            say(each)
        if props.asleep:
            # Not a failure.  Whatever could still be asked is found out by the proxy when it needs llama-server anyway.
            return say("note: it is asleep; the rest is not checked, because that would wake it")
        # Whether the file arrives can be seen only if the setting names the folder.
        if files and folder.path is not None:
            await _try_saving(llama, folder, folder.path, say)
        prefixes = Prefixes(llama)
        # One by one: llama-server tokenizes in the thread that also answers its other requests.
        for name, text in texts:
            # Each is said as soon as it is known: counting a long text takes a while.
            await _count(prefixes, name, text, props, say)
    # Whatever fails on the way ends the survey, because each further question would fail in the same way.
    except LlamaCallFailed as error:
        say(of_trouble(error))


async def _try_saving(llama: LlamaApi, folder: SlotFolder, path: Path, say: Say) -> None:
    """Have llama-server write the file of an empty slot, and look whether it arrives in `path`.

    Only a trial shows that: llama-server may run as another user, in a container, or on a machine that shares the
    folder.  Fails with `LlamaCallFailed` if llama-server does not answer.
    """
    # What the slot holds, by `GET /slots`.  `None` if llama-server runs with --no-slots.
    witness = await llama.witness()
    if witness is None or witness.busy or witness.tokens:
        # A save writes everything that the slot holds, perhaps gigabytes, and a user's request would wait for it.
        return say("note: whether slot files can be written was not tried: the slot is in use")
    try:
        await llama.save(TRIAL)
    # An error as the answer: the disk, the permissions, or a build without slot files.  No answer at all is another
    # exception, which ends the survey.
    except LlamaError as error:
        return say(
            Advice(
                f"it cannot write slot files: {error}",
                "give the user who runs llama-server write permission for the folder of its --slot-save-path, and check"
                " that the disk is not full",
            )
        )
    # llama-server says that it wrote the file.  If bioproxy does not see it, the two look at different folders.
    # The file is small, since the slot is empty, and it is looked for after llama-server has answered, so it is whole.
    if folder.written_at(TRIAL) is None:
        return say(
            Advice(
                f"it wrote {TRIAL}, but not into {path}",
                "set slot_save_path to the folder of its --slot-save-path, by the name that it has on this machine, and"
                f" remove {TRIAL} there",
            )
        )
    # bioproxy also removes files: those of templates that are gone, and those that turned out to be of no use.
    if not folder.remove(TRIAL):
        return say(
            Advice(
                f"bioproxy may not remove files in {path}",
                f"give the user who runs bioproxy write permission there, and remove {TRIAL}",
            )
        )
    # Written by llama-server, seen by bioproxy, and removed again: all that a slot file needs.
    say("ok: it writes slot files where slot_save_path says")


async def _count(prefixes: Prefixes, name: str, text: str, props: Props, say: Say) -> None:
    """Say how many tokens of the context a template takes; `text` is what stands before the message.

    Fails with `UpstreamError` or `UpstreamTimeout`, which end the survey.  An error that llama-server answers with
    concerns this template alone, and is said.
    """
    # `USER_MESSAGE_ONLY`: in a request with nothing before the template.  A system message of a client would add its
    # own tokens.
    try:
        tokens = await prefixes.tokens(text, USER_MESSAGE_ONLY, props.context, name)
    # An exception of its own, because the template is at fault here and not llama-server.
    except DoesNotFit as error:
        say(Advice(f"template {name}: {error}", "make it shorter, or start llama-server with a larger context (-c)"))
    except LlamaError as error:
        say(Advice(f"template {name}: its tokens cannot be counted: {error}", "use a newer build of llama-server"))
    # Both numbers, so that an operator sees how much is left for messages and answers.
    else:
        say(f"ok: template {name} takes {len(tokens)} of {props.context} tokens")
