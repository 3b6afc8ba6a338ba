"""What is done while nobody asks: here the tokens of the prompt in the slot; the rest is in `test_warmer`."""

from __future__ import annotations

from twisted.internet.defer import CancelledError

from tests.support.world import KEY, WarmTest

TOKENIZE = "/tokenize"


class MakingTokens(WarmTest):
    """`IdleWork`, with ``@code`` warm in the slot after a restart of bioproxy, which has made no tokens yet."""

    def setUp(self) -> None:
        """Build it."""
        super().setUp()
        old = self.use()
        self.rounds()
        old.state.close()
        self.use(state_dir=old.settings.state_dir)
        self.server.files = old.llama_server.files
        self.prepared = self.built.start(lambda: self.built.slot.prepare("code", KEY))
        self.assertEqual("restored", self.successResultOf(self.prepared).cache)

    def test_made_once(self) -> None:
        """They are made in an idle moment, once, so that the slot can be cut back before the next question."""
        self.assertIn(TOKENIZE, self.rounds())
        self.assertEqual([], self.rounds(5))

    def test_in_vain(self) -> None:
        """What llama-server refuses to make is not asked for in each round, but again of another process."""
        self.server.answers = {"/apply-template": "nonsense"}
        self.assertIn("/apply-template", self.rounds())
        self.assertEqual([], self.rounds(5))
        self.server.answers = {}
        self.server.restart()
        self.look()
        self.assertIn(TOKENIZE, self.rounds(3))

    def test_cancelled(self) -> None:
        """A stop of the service gives up the question."""
        self.server.pause_at = {TOKENIZE}
        working = self.begin()
        working.cancel()
        self.built.settle()
        self.failureResultOf(working, CancelledError)
        self.assertIn(TOKENIZE, self.server.gone)
