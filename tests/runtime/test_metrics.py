"""The metrics: their names, types and labels are an interface."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from bioproxy import __version__
from bioproxy.runtime.metrics import SECONDS, Metrics

# Name, type, labels: the table of the interface.
TABLE = {
    "bioproxy_requests_total": ("counter", "endpoint template code"),
    "bioproxy_request_seconds": ("histogram", "template"),
    "bioproxy_ttft_seconds": ("histogram", "template"),
    "bioproxy_queue_seconds": ("histogram", "template"),
    "bioproxy_slot_uses_total": ("counter", "template cache"),
    "bioproxy_passed_over_seconds": ("histogram", ""),
    "bioproxy_linger_total": ("counter", "result"),
    "bioproxy_estimate_ratio": ("histogram", ""),
    "bioproxy_queue_depth": ("gauge", ""),
    "bioproxy_gate_busy": ("gauge", "kind"),
    "bioproxy_prompt_tokens_total": ("counter", "template source"),
    "bioproxy_prefill_seconds_saved_total": ("counter", "template"),
    "bioproxy_warmups_total": ("counter", "template result"),
    "bioproxy_warmup_seconds": ("histogram", "template"),
    "bioproxy_preempt_seconds": ("histogram", ""),
    "bioproxy_template_warm": ("gauge", "template"),
    "bioproxy_template_tokens": ("gauge", "template"),
    "bioproxy_template_errors_total": ("counter", "template"),
    "bioproxy_slot_saves_total": ("counter", "template result"),
    "bioproxy_slot_restores_total": ("counter", "template result"),
    "bioproxy_slot_parked_total": ("counter", "result"),
    "bioproxy_slot_bytes_total": ("counter", "direction"),
    "bioproxy_shared_shelf_up": ("gauge", ""),
    "bioproxy_shared_files_total": ("counter", "action result"),
    "bioproxy_shared_bytes_total": ("counter", "action"),
    "bioproxy_shared_tokens_total": ("counter", ""),
    "bioproxy_shared_warmups_saved_total": ("counter", ""),
    "bioproxy_reactor_stall_seconds": ("histogram", ""),
    "bioproxy_llama_restarts_total": ("counter", ""),
    "bioproxy_upstream_up": ("gauge", ""),
    "bioproxy_build_info": ("gauge", "version twisted python"),
}


class Names(SynchronousTestCase):
    """The text that Prometheus collects."""

    def test_table(self) -> None:
        """Exactly these metrics are there, with these types and labels, and no `_created` beside them."""
        metrics = Metrics()
        for name, (kind, labels) in TABLE.items():
            metric = getattr(metrics, name.removeprefix("bioproxy_").removesuffix("_total"), None)
            if metric is not None:  # the one that has its value from the beginning is no attribute
                child = metric.labels(**dict.fromkeys(labels.split(), "x")) if labels else metric
                getattr(child, {"counter": "inc", "gauge": "inc", "histogram": "observe"}[kind])(1)
        text = metrics.text().decode()
        found = {}
        for family in text_string_to_metric_families(text):
            name = family.name + ("_total" if family.type == "counter" else "")
            for sample in family.samples:
                self.assertTrue(sample.name.startswith(name), sample.name)
                found[name] = (family.type, set(sample.labels) - {"le"})
        self.assertEqual({name: (kind, set(labels.split())) for name, (kind, labels) in TABLE.items()}, found)
        self.assertNotIn("_created", text)

    def test_versions(self) -> None:
        """From the beginning the versions are there, as labels of a 1."""
        [info] = [
            family
            for family in text_string_to_metric_families(Metrics().text().decode())
            if family.name == "bioproxy_build_info"
        ]
        self.assertEqual([(__version__, 1.0)], [(sample.labels["version"], sample.value) for sample in info.samples])

    def test_independent(self) -> None:
        """Two proxies in one process count for themselves."""
        one, two = Metrics(), Metrics()
        one.slot_bytes.labels("saved").inc(5)
        self.assertEqual(5, one.registry.get_sample_value("bioproxy_slot_bytes_total", {"direction": "saved"}))
        self.assertIsNone(two.registry.get_sample_value("bioproxy_slot_bytes_total", {"direction": "saved"}))

    def test_expected(self) -> None:
        """What may be counted for a template stands at 0 from the beginning, and counting goes on from there."""
        metrics = Metrics()
        metrics.slot_saves.labels("code", "ok").inc(2)
        metrics.expect("code")
        value = metrics.registry.get_sample_value
        self.assertEqual(2, value("bioproxy_slot_saves_total", {"template": "code", "result": "ok"}))
        self.assertEqual(0, value("bioproxy_slot_saves_total", {"template": "code", "result": "failed"}))
        self.assertEqual(0, value("bioproxy_slot_restores_total", {"template": "code", "result": "ineffective"}))
        self.assertEqual(0, value("bioproxy_warmups_total", {"template": "code", "result": "preempted"}))
        self.assertEqual(0, value("bioproxy_template_errors_total", {"template": "code"}))

    def test_buckets(self) -> None:
        """Times from a cached answer to the longest prompt fall into buckets of their own."""
        self.assertEqual(sorted(SECONDS), list(SECONDS))
        self.assertLessEqual(SECONDS[0], 0.005)
        self.assertGreaterEqual(SECONDS[-1], 600)
