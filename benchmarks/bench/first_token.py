"""Theme "first-token": how long a user waits for the first word of an answer to a question about a long document.

For each model and each length of the document, llama.cpp alone, hearth-llm and bioproxy go through the same states,
each with a llama.cpp of its own (`benchmarks.bench.llama_side`), one question at a time and in turns:

* *cold*: nobody has sent this text before;
* *hot*: the slot holds the document from the last question;
* *second turn*: the client goes on with a conversation that the slot holds;
* *after a switch*: a question about another document came between;
* *after a restart of the proxy*, and *of llama-server*: the question comes as soon as the program answers again;
* *second turn after a restart*: a conversation goes on when llama-server was started again;
* *after an edit*: a sentence in the middle of the document was changed, and all that a proxy does about that by itself
  is done.  llama.cpp alone cannot know of an edit before the next question;
* *in a running warm-up*: a question about one document while another is being warmed up (bioproxy only);
* *agent's new session*: a third conversation with the same long system message, after another client's request;
* *agent's new session after a restart* of llama-server.

Each has seconds and tokens.  A state that costs a contestant more than `LONG` seconds is measured once, the others
several times, and a table has the medians.

What a state costs beside *hot* is measured in pairs: bioproxy is asked in that state, and at once again, now hot.  The
ratio of a pair hardly depends on what else the machine does at that moment, and the median of such ratios even less.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.bench.asking import Asked, Message, ask
from benchmarks.bench.contestants import Missing
from benchmarks.bench.llama_side import Bioproxy, Side, kinds
from benchmarks.bench.measuring import Amounts, median, no_collector
from benchmarks.bench.models import model_file
from benchmarks.bench.results import Cell, Found, Table
from benchmarks.servers import Children, invented

LONG = 2.0
"""Seconds from which on one measurement is enough: most of what disturbs it is even by then."""

WHOLE_COURSE = 5000
"""Tokens of a document up to which it goes through all states; longer ones take minutes for each computation."""

OTHER = 300
"""Tokens of the document of which somebody asks in between."""

DOCUMENT, SHORT, LATER = "notes", "other", "later"
"""Names of documents: the one that is measured, the one in between, and the one that is warmed up meanwhile."""

COLD, HOT, TURN, SWITCH = "cold", "hot", "second turn", "after a switch"
PROXY_RESTART, LLAMA_RESTART = "after the proxy's restart", "after llama-server's restart"
TURN_RESTART = "second turn after llama-server's restart"
EDIT, WARMING = "after an edit", "in a running warm-up"
AGENT, AGENT_RESTART = "agent's new session", "agent's new session after llama-server's restart"
TRIES = 5
"""Tries after which something is not had any more: a hot question, or a moment in the middle of a warm-up."""

LONG_ENOUGH = 4000
"""Words of a document whose warm-up takes longer than it takes to see it."""

MISSED = 20.0
"""Seconds after which a warm-up has begun, or was missed."""

LEAST = 64
"""Tokens that a hot question computes at least, for the same answer as cold."""

PAIRED = frozenset({SWITCH, PROXY_RESTART, LLAMA_RESTART, EDIT, AGENT, AGENT_RESTART})
"""The states whose question is hot when it is asked again."""

STATES = (
    *(COLD, HOT, TURN, SWITCH, PROXY_RESTART, LLAMA_RESTART),
    *(TURN_RESTART, EDIT, WARMING, AGENT, AGENT_RESTART),
)


class Course:
    """One document on one model: the contestants and what was measured of each in each state."""

    def __init__(self, sides: Sequence[Side], tokens: int, amounts: Amounts) -> None:
        self.sides = sides
        self.asked: dict[tuple[str, str], list[Asked]] = {}
        """By state and contestant."""
        self.pairs: dict[str, list[tuple[float, float]]] = {}
        """By state, for bioproxy: seconds in that state, and at once again."""
        self._tokens = tokens
        self._amounts = amounts
        self._random = random.Random(tokens)
        self._document = invented(tokens - 30)
        # Everything that a client sends begins differently, or one state would profit from another.
        self._system = f"You are an agent. {invented(tokens - 30)}"
        self._talk: dict[str, list[Message]] = {}

    def run(self) -> None:
        """Go through all states."""
        short = invented(OTHER)
        for side in self.sides:
            side.write(SHORT, short)
            side.settle()
            ask(side.port, [side.question(SHORT, "why?")])
            side.settle()
        # bioproxy reads a file when it is asked.  This one is asked for before the change can have been noticed.
        self.measure(COLD, 1, lambda side: side.write(DOCUMENT, self._document), self.about)
        self.measure(HOT, self._amounts.repeats, lambda side: None, self.about)
        self.measure(SWITCH, self._amounts.repeats, self.switch, self.about)
        self.measure(LLAMA_RESTART, self._amounts.restarts, lambda side: side.restart_llama(), self.about)
        if self._tokens <= WHOLE_COURSE:
            self.go_round()
        for side in self.sides:
            for _ in range(2):
                self.new_session(side)
                side.settle()
        self.measure(AGENT, self._amounts.repeats, self.switch, self.new_session)
        self.measure(AGENT_RESTART, self._amounts.restarts, lambda side: side.restart_llama(), self.new_session)

    def go_round(self) -> None:
        """Go through the states that long documents do without."""
        restarts = self._amounts.restarts
        self.measure(TURN, self._amounts.repeats, self.begin, self.go_on)
        proxies = [side for side in self.sides if side.proxy is not None]
        self.measure(PROXY_RESTART, restarts, lambda side: side.restart_proxy(), self.about, proxies)
        self.measure(TURN_RESTART, restarts, self.begin_and_restart, self.go_on)
        self.measure(EDIT, restarts, self.edit, self.about)
        warming = [side for side in self.sides if isinstance(side, Bioproxy)]
        self.measure(WARMING, restarts, self.warm_another, self.about, warming)
        for side in warming:
            side.write(LATER, "short again")
            side.settle()

    def measure(
        self,
        state: str,
        repeats: int,
        prepare: Callable[[Side], object],
        question: Callable[[Side], Asked],
        sides: Sequence[Side] | None = None,
    ) -> None:
        """Bring each side into a state and ask, in turns, so many times."""
        order = list(self.sides if sides is None else sides)
        with no_collector():
            for _ in range(repeats):
                self._random.shuffle(order)
                for side in order:
                    taken = self.asked.setdefault((state, side.name), [])
                    if not any(each.seconds > LONG for each in taken):
                        prepare(side)
                        taken.append(question(side))
                        side.settle()
                        if state in PAIRED and isinstance(side, Bioproxy):
                            self.pair(state, taken[-1], side, question)

    def pair(self, state: str, first: Asked, side: Side, question: Callable[[Side], Asked]) -> None:
        """Ask once more, now hot, and keep both times."""
        # Right after its start bioproxy does not know the tokens of its prompts.  Until then a hot question computes
        # fewer than it should for the same answer, so it is no yardstick.
        for _ in range(TRIES):
            again = question(side)
            side.settle()
            if again.computed >= LEAST:
                self.pairs.setdefault(state, []).append((first.seconds, again.seconds))
                return

    def words(self) -> str:
        """Return a question that was not asked before: with the same one there would be less to compute."""
        return f"{invented(6)}?"

    def about(self, side: Side) -> Asked:
        """Ask about the document."""
        return ask(side.port, [side.question(DOCUMENT, self.words())])

    def switch(self, side: Side) -> None:
        """Ask about the other document, as another client does."""
        ask(side.port, [side.question(SHORT, self.words())])
        side.settle()

    def begin(self, side: Side) -> None:
        """Begin a conversation about the document, and have its client write the next question."""
        first = [side.question(DOCUMENT, self.words())]
        answer = ask(side.port, first)
        side.settle()
        said = [{"role": "assistant", "content": answer.text}, {"role": "user", "content": self.words()}]
        self._talk[side.name] = first + said

    def begin_and_restart(self, side: Side) -> None:
        """Begin a conversation, and start llama-server again."""
        self.begin(side)
        side.restart_llama()

    def go_on(self, side: Side) -> Asked:
        """Send the conversation with its next question."""
        return ask(side.port, self._talk[side.name])

    def edit(self, side: Side) -> None:
        """Change a sentence in the middle of the document, the same way for each side that has its turn."""
        middle = len(self._document) // 2
        side.write(DOCUMENT, f"{self._document[:middle]} {self.words()} {self._document[middle:]}")
        side.settle()

    def warm_another(self, side: Side) -> None:
        """Give another document a text, and return in the middle of its warm-up."""
        assert isinstance(side, Bioproxy)
        # The smallest models are through within a moment, which may pass unseen.  Then there is another text.
        for _ in range(TRIES):
            side.write(LATER, invented(max(self._tokens, LONG_ENOUGH)))
            deadline = time.monotonic() + MISSED
            while time.monotonic() < deadline:
                if 0 < side.template(LATER)["progress"] < 1:
                    return
                time.sleep(0.002)
        raise SystemExit(f"no warm-up was seen in {TRIES} tries")

    def new_session(self, side: Side) -> Asked:
        """Begin a conversation of the agent."""
        user = {"role": "user", "content": self.words()}
        return ask(side.port, [{"role": "system", "content": self._system}, user])


def run(amounts: Amounts, folder: Path) -> Found:
    """Measure the theme."""
    found = Found()
    for model, lengths in amounts.prompts.items():
        try:
            file = model_file(model)
        except Missing as missing:
            found.remarks.append(str(missing))
            continue
        for tokens in lengths:
            # A folder of its own: the slot files of all courses together are more than 10 GB.
            with TemporaryDirectory(dir=folder) as scratch, ExitStack() as stack:
                course = Course(contestants(found, stack, Path(scratch), file, amounts), tokens, amounts)
                course.run()
            print(f"  {model}, {tokens} tokens: done", flush=True)
            tell(found, model, tokens, course)
    found.remarks = list(dict.fromkeys(found.remarks))
    return found


def contestants(found: Found, stack: ExitStack, folder: Path, model: Path, amounts: Amounts) -> list[Side]:
    """Start all sides that can be had."""
    sides: list[Side] = []
    for kind in kinds(amounts.from_pypi):
        place = folder / kind.__name__
        place.mkdir(parents=True)
        children = Children(stack, place)
        try:
            if kind is Bioproxy:
                sides.append(Bioproxy(children, place, model, amounts.threads, names=(DOCUMENT, SHORT, LATER)))
            else:
                sides.append(kind(children, place, model, amounts.threads))
        except Missing as missing:
            found.remarks.append(str(missing))
    return sides


def tell(found: Found, model: str, tokens: int, course: Course) -> None:
    """Add the table and the ratios of a course."""
    names = [side.name for side in course.sides]
    seconds = {key: median([each.seconds for each in asked]) for key, asked in course.asked.items()}
    rows: list[list[Cell]] = []
    for state in (each for each in STATES if any((each, name) in course.asked for name in names)):
        computed: list[Cell] = []
        for name in names:
            asked = course.asked.get((state, name))
            computed.append(round(median([each.computed for each in asked])) if asked else None)
        rows.append([state, *(seconds.get((state, name)) for name in names), *computed])
    columns = ("", *(f"{name}, s" for name in names), *(f"{name}, computed tokens" for name in names))
    prompt = max(each.computed + each.reused for asked in course.asked.values() for each in asked)
    title = f"Seconds to the first word, and prompt tokens computed: {model}, {tokens:,} tokens"
    note = f"The longest prompt had {prompt:,} tokens. Medians of {course_counts(course)} questions to each."
    found.tables.append(Table(f"first-token-{model}-{tokens}", title, columns, rows, note))
    for state, pairs in course.pairs.items():
        found.ratios[f"{model} {tokens}: {state} / hot"] = median([first / again for first, again in pairs])
    # What others take is computing, seconds of it, and was measured once.  Here the least of each is compared: what
    # other programs do to the machine only ever adds.
    least = {key: min(each.seconds for each in asked) for key, asked in course.asked.items()}
    for state in (LLAMA_RESTART, AGENT_RESTART, EDIT):
        mine, alone = least.get((state, "bioproxy")), least.get((state, "llama.cpp alone"))
        if mine and alone:
            found.ratios[f"{model} {tokens}: {state}, llama.cpp alone / bioproxy"] = alone / mine


def course_counts(course: Course) -> str:
    """Return the smallest and the largest number of questions behind a figure."""
    counts = [len(asked) for asked in course.asked.values()]
    return f"{min(counts)} to {max(counts)}" if min(counts) != max(counts) else str(counts[0])
