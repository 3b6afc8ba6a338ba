"""Names of prompts: which are learned ones, and what metrics make of them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from bioproxy.prompts.digests import digest
from bioproxy.prompts.prompt_ids import is_learned, learned_id, metric_label


class PromptIdsTests(SynchronousTestCase):
    """`bioproxy.prompts.prompt_ids`."""

    def test_digest_makes_a_short_name(self) -> None:
        """A learned prompt is called ``auto-`` and the first twelve digits of its digest."""
        self.assertEqual(learned_id("0123456789abcdef"), "auto-0123456789ab")
        self.assertTrue(is_learned(learned_id(digest("any text"))))

    def test_templates_are_no_learned_prompts(self) -> None:
        """A template's name is not taken for that of a learned prompt, however similar it looks."""
        for name in ("code", "auto", "auto-", "auto-0123456789a", "auto-0123456789abc", "auto-0123456789AB", ""):
            self.assertFalse(is_learned(name), name)

    def test_metrics_have_one_label_for_all_learned_prompts(self) -> None:
        """The number of time series does not grow with what is learned."""
        self.assertEqual(metric_label("auto-0123456789ab"), "auto")
        self.assertEqual(metric_label("code"), "code")
        self.assertEqual(metric_label(""), "")
