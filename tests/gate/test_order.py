"""Who goes next, as a table, and what holds for any queue."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis.strategies import booleans, builds, floats, integers, lists
from twisted.trial.unittest import SynchronousTestCase

from bioproxy.gate.order import (
    CHEAP_SWITCH,
    SHORTEST_LINGER,
    Enter,
    Linger,
    Policy,
    WaitingTurn,
    decide,
    in_order,
    worth_lingering,
)

OTHER, NEXT, FILL = WaitingTurn(), WaitingTurn(goes_on=True), WaitingTurn(fills_only=True)
IN_ORDER, PATIENT = Policy(0), Policy(10)
LINGERS = Policy(10, 0, 0.5)


def passed(seconds: float) -> WaitingTurn:
    """Return one who was passed over for so long."""
    return WaitingTurn(passed_s=seconds)


TABLE: list[tuple[str, list[WaitingTurn], Policy, Enter | Linger | None]] = [
    ("nobody waits", [], LINGERS, None),
    ("the order of arrival", [OTHER, OTHER], PATIENT, Enter(0)),
    ("one who goes on passes", [OTHER, OTHER, NEXT], PATIENT, Enter(2)),
    ("the first of them", [OTHER, NEXT, NEXT], PATIENT, Enter(1)),
    ("not without patience", [OTHER, NEXT], IN_ORDER, Enter(0)),
    ("who is the first passes nobody", [NEXT, passed(10)], PATIENT, Enter(0)),
    ("not past an impatient one", [OTHER, passed(10), NEXT], PATIENT, Enter(0)),
    ("but past those before him", [OTHER, NEXT, passed(10), NEXT], PATIENT, Enter(1)),
    ("not if it will take too long", [passed(8), NEXT], Policy(10, 2), Enter(0)),
    ("if there is just time", [passed(7.9), NEXT], Policy(10, 2), Enter(1)),
    ("lingers", [OTHER, OTHER], LINGERS, Linger(0.5)),
    ("lingers as long as patience lasts", [OTHER, passed(9.75)], LINGERS, Linger(0.25)),
    ("lingers only where the next may pass then", [passed(8), OTHER], Policy(10, 2, 0.5), Enter(0)),
    ("not for what is here", [OTHER, NEXT], LINGERS, Enter(1)),
    ("does not linger without patience", [OTHER], Policy(0, 0, 0.5), Enter(0)),
    ("nor for no time", [OTHER], Policy(10, 0, SHORTEST_LINGER), Enter(0)),
    ("who fills the cache comes last", [FILL, OTHER], IN_ORDER, Enter(1)),
    ("if nobody else waits", [FILL, FILL], PATIENT, Enter(0)),
    ("and is passed by anybody", [WaitingTurn(passed_s=99, fills_only=True), OTHER, NEXT], PATIENT, Enter(2)),
    ("lingers for him as well", [FILL], LINGERS, Linger(0.5)),
]

QUEUES = lists(builds(WaitingTurn, booleans(), floats(0, 20), booleans()), max_size=12)
POLICIES = builds(Policy, floats(0, 20), floats(0, 10), floats(0, 2))


class WorthLingering(SynchronousTestCase):
    """`worth_lingering`."""

    def test_cheap(self) -> None:
        """Where bringing the conversation back is quick, the gate does not linger; else it lingers the whole time."""
        self.assertEqual(0.5, CHEAP_SWITCH)
        for switch, seconds in ((0.24, 0.0), (0.25, 0.5), (100.0, 0.5)):
            self.assertEqual(seconds, worth_lingering(0.5, switch), switch)
        self.assertEqual(0.0, worth_lingering(0.0, 100.0))


class InOrder(SynchronousTestCase):
    """`in_order`."""

    @given(lists(booleans(), max_size=12))
    def test_any(self, fills_only: list[bool]) -> None:
        """All are there once: first the others, then those that only fill the cache, each as they came."""
        order = in_order(fills_only)
        others = [index for index, fills in enumerate(fills_only) if not fills]
        self.assertEqual([*others, *(index for index, fills in enumerate(fills_only) if fills)], order)


class Order(SynchronousTestCase):
    """`decide`."""

    def test_table(self) -> None:
        """Who is let in, or for how long nobody is."""
        for name, queue, policy, expected in TABLE:
            self.assertEqual(expected, decide(queue, policy), name)

    @settings(max_examples=2000, derandomize=True, deadline=None)
    @given(QUEUES, POLICIES)
    def test_any_queue(self, queue: list[WaitingTurn], policy: Policy) -> None:
        """Nobody loses more than there is patience for; the others keep their order; who fills the cache is last."""
        decision = decide(queue, policy)
        users = [each for each in queue if not each.fills_only]
        if decision is None:
            assert not queue
        elif isinstance(decision, Linger):
            assert 0 < decision.seconds <= policy.linger_s
            # There is room for the request that is waited for as well.
            after = decision.seconds + policy.expected_s
            assert all(each.passed_s + after <= policy.patience_s + 1e-9 for each in users)
        else:
            chosen, before = queue[decision.index], queue[: decision.index]
            assert not chosen.fills_only or not users
            passed_over = [each for each in before if not each.fills_only]
            if not chosen.fills_only and passed_over:
                assert chosen.goes_on
                assert all(each.passed_s + policy.expected_s < policy.patience_s for each in passed_over)

    @settings(max_examples=1000, derandomize=True, deadline=None)
    @given(QUEUES, floats(0, 10), floats(0, 2), integers(0, 12))
    def test_no_patience(self, queue: list[WaitingTurn], expected: float, linger: float, at: int) -> None:
        """Without patience the first user is next, always."""
        queue.insert(min(at, len(queue)), OTHER)
        first = next(index for index, each in enumerate(queue) if not each.fills_only)
        self.assertEqual(Enter(first), decide(queue, Policy(0, expected, linger)))
