"""HAProxy with the example's configuration, three pairs of bioproxy and a real llama.cpp, and one shelf."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.fleet_asking import Attempt
from benchmarks.fleet_clients import SLACK, Crowd, Session, Summary
from benchmarks.fleet_parts import Balancer, Pair, find_haproxy, round_robin, write_templates
from benchmarks.servers import Children, wait_for
from bioproxy.demo import tiny_model
from tests.integration.conftest import ModelOf, Run
from tests.integration.support import async_test, children, is_running, until

SESSIONS, TURNS, TEMPLATES = 20, 4, 4
"""What is asked: 80 requests.  `make fleet` asks more, and prints what went where."""

THINKING = 3.0
"""Seconds between two turns of a session, at most: so a saved conversation is on the shelf before the next turn."""

QUESTION = 300
"""Words of a question: so many that a turn which does not find its conversation computes more than is allowed."""

FEWER = 2
"""Divisor: at most this part of the turns that round robin leaves cold may be cold with affinity.

How many are, also depends on the machine: the slower it answers, the more requests there are at the same time, and the
more of them go to the next pair.  Beside round robin in the same run that hardly matters.
"""

STEADY = tiny_model.Size(blocks=4, width=128, heads=4, feed_forward=384)
"""A model for which a file of a thousand tokens is worth fetching, also on a busy machine: computing takes longer."""

PairOf = Callable[..., Pair]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Return what ends all processes after a test."""
    if find_haproxy() is None:
        pytest.fail("haproxy is missing") if os.environ.get("CI") == "true" else pytest.skip("haproxy is missing")
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def pair_of(stack: ExitStack, tmp_path: Path, tiny: Path) -> PairOf:
    """Return a function that starts a pair by its name."""
    children, templates = Children(stack, tmp_path), write_templates(tmp_path, TEMPLATES)
    return lambda name, model=tiny: Pair(children, tmp_path, name, model, templates)


def balance(stack: ExitStack, folder: Path, pairs: list[Pair], configuration: str | None = None) -> Balancer:
    """Start HAProxy, and wait until it takes all pairs for ready."""
    folder.mkdir()
    balancer = Balancer(stack, folder, *pairs, configuration=configuration)
    wait_for("HAProxy to see the pairs", lambda: all(balancer.sees(pair) for pair in pairs))
    return balancer


def session(name: str, number: int) -> Session:
    """Return a session on one of the templates."""
    return Session(name, f"@t{number % TEMPLATES}", question_words=QUESTION)


def total(pairs: list[Pair], name: str, **labels: str) -> float:
    """Return the sum of a metric over all pairs."""
    return sum(pair.metric(name, **labels) for pair in pairs)


def test_affinity(stack: ExitStack, tmp_path: Path, pair_of: PairOf, capsys: pytest.CaptureFixture[str]) -> None:
    """Each template is computed once in all, and conversations find it; round robin computes more."""
    pairs = [pair_of(f"pair{number}") for number in (1, 2, 3)]
    for pair in pairs:
        wait_for("warm templates", pair.warm)
    assert total(pairs, "warmups_total", result="done") == TEMPLATES
    assert total(pairs, "shared_warmups_saved_total") == 2 * TEMPLATES
    tokens = max(pair.metric("template_tokens") for pair in pairs)
    assert total(pairs, "shared_tokens_total") == 2 * tokens > 2 * 800 * TEMPLATES

    results = {}
    for name, configuration in (("affinity", None), ("round robin", round_robin())):
        with ExitStack() as running:
            balancer = balance(running, tmp_path / name.replace(" ", "-"), pairs, configuration)
            before = total(pairs, "prompt_tokens_total", source="computed")
            crowd = Crowd(session(f"{name} {number}", number) for number in range(SESSIONS))
            crowd.start(balancer.port, TURNS, THINKING)
            crowd.join()
            results[name] = Summary.of(crowd.turns)
            with capsys.disabled():
                print(f"\n{name}: {results[name]}")
            assert not crowd.failures
            # What the clients were told is what bioproxy counts.
            assert total(pairs, "prompt_tokens_total", source="computed") - before == results[name].computed
            assert {turn.answer.pair for turn in crowd.turns} == {pair.name for pair in pairs}
    affinity, other = results["affinity"], results["round robin"]
    assert affinity.turns == other.turns == SESSIONS * TURNS
    assert 1 - affinity.warm <= (1 - other.warm) / FEWER
    assert affinity.computed < other.computed
    # Nobody computed a template again.
    assert total(pairs, "warmups_total", result="done") == TEMPLATES


def test_events(stack: ExitStack, tmp_path: Path, pair_of: PairOf, model_of: ModelOf) -> None:
    """Killed, drained, added, reloaded, all under load: no wrong answer, none that hangs, and conversations move."""
    model = model_of("steady", STEADY)
    pairs = [pair_of(f"pair{number}", model) for number in (1, 2, 3)]
    first, second, _ = pairs
    for pair in pairs:
        wait_for("warm templates", pair.warm)
    balancer = balance(stack, tmp_path / "haproxy", pairs)
    # Some work all the time; the others go on after each event, and what they compute then is looked at.
    busy = Crowd(Session(f"busy {number}", f"@t{number % TEMPLATES}", answer_tokens=60) for number in range(5))
    busy.start(balancer.port, 15, 2.0, endless=True)
    calm = [session(f"calm {number}", number) for number in range(6)]

    def go_on() -> None:
        """Let the calm sessions ask their next question, and wait until their conversations are on the shelf."""
        for each in calm:
            turn = each.turn(balancer.port)
            if turn.number:
                assert turn.answer.computed <= turn.new + SLACK, (turn, each.turns, each.failures)
        # A conversation is saved when another one takes the slot.  The first one counted may have had it before.
        running = [pair for pair in pairs if pair.running]
        wanted = {pair.name: count(pair) + 2 for pair in running}
        wait_for("others in the slots", lambda: all(count(pair) >= wanted[pair.name] for pair in running))
        for pair in running:
            wait_for("published conversations", pair.published)

    def count(pair: Pair) -> int:
        """Return how many turns of the busy sessions a pair has answered."""
        return sum(turn.answer.pair == pair.name for turn in busy.turns)

    def home() -> dict[str | None, int]:
        """Return how many calm sessions were answered last by each pair."""
        last = [each.turns[-1].answer.pair for each in calm]
        return {name: last.count(name) for name in last}

    go_on()
    go_on()
    assert home().get("pair1") and home().get("pair2")

    first.kill()
    go_on()
    assert "pair1" not in home()
    first.llama.start()
    first.start()
    wait_for("HAProxy to see the pair again", lambda: balancer.sees(first))
    go_on()
    assert "pair1" in home()

    second.drain()
    wait_for("HAProxy to see that the pair stops", lambda: not balancer.sees(second))
    go_on()
    assert "pair2" not in home()
    wait_for("bioproxy to end", lambda: not second.running)

    pairs.append(pair_of("pair4", model))
    wait_for("warm templates", pairs[-1].warm)
    balancer.add(pairs[-1], 4)
    balancer.reload()
    wait_for("HAProxy to see the new pair", lambda: balancer.sees(pairs[-1]))
    for _ in range(2):
        go_on()
    assert count(pairs[-1])

    busy.stop()
    busy.join()
    failures = [*busy.failures, *(failure for each in calm for failure in each.failures)]
    turns = [*busy.turns, *(turn for each in calm for turn in each.turns)]
    print(f"{len(turns)} turns, {len(failures)} failures: {failures}")
    assert all(turn.answer.is_whole for turn in turns)
    assert not [each for each in failures if each.hung or not honest(each)]


@async_test
async def test_demonstration(stack: ExitStack, run: Run) -> None:
    """`make fleet` starts a fleet, and Ctrl-C in the middle of the work ends all of it."""
    demo = run(sys.executable, "-m", "benchmarks.fleet_demo", "--sessions", "2")
    await until(lambda: "Each goes to the pair" in demo.output or demo.process.poll() is not None)
    # Three pairs of two processes, and HAProxy, whose second process does the work.
    await until(lambda: len(children(demo.process.pid)) == 7)
    started = [pid for child in children(demo.process.pid) for pid in (child, *children(child))]
    demo.process.send_signal(signal.SIGINT)
    assert await demo.ended() == 130
    assert "everything is ended" in demo.output
    assert not [pid for pid in started if is_running(pid)]


def honest(failure: Attempt) -> bool:
    """Tell whether a failure says so: an error that helps, or an answer that nobody takes for whole."""
    return not failure.looks_whole if failure.status == 200 else failure.helpful and failure.status >= 500
