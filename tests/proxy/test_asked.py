"""What a request asks the slot for."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.learned_prompts import LearnedPrompt, whole_key
from bioproxy.proxy.asked import asked_by_chat
from tests.learning.test_prompt_learning import chat


class Chats(SynchronousTestCase):
    """`asked_by_chat`."""

    def test_no_prompt(self) -> None:
        """A chat on no known prompt has no name, but a key: an answer that was broken off is found by it."""
        request = chat("Be careful.")
        asked = asked_by_chat(request, None)
        self.assertEqual(("", whole_key(request.beginning)), (asked.prompt, asked.key))
        self.assertEqual((request.conversation, False), (asked.conversation, asked.pinned))

    def test_prompt(self) -> None:
        """A chat on a learned prompt has its id and its key; that of a whole one is the same as without it."""
        request = chat("Be careful.")
        whole, part = LearnedPrompt(request.beginning), LearnedPrompt(request.beginning, 64, "mark")
        for learned in (whole, part):
            asked = asked_by_chat(request, learned)
            self.assertEqual((learned.id, learned.key, learned), (asked.prompt, asked.key, asked.learned))
        self.assertEqual(whole.key, asked_by_chat(request, None).key)
