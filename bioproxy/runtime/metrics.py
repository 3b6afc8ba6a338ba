"""Every number that bioproxy counts, in one table.

prometheus-client keeps the numbers and writes them as text for Prometheus to collect.  Three kinds occur: a
*counter* only grows, a *gauge* goes up and down, a *histogram* sorts observations (here: seconds) into buckets,
from which Prometheus computes percentiles.  A *label* splits a number: `template` is the template's name, or
empty where a request used none.

The numbers live in a registry that belongs to one `Metrics` object instead of prometheus-client's global one:
tests build many proxies in one process, and each must begin at zero.

Knows nothing of the rest of bioproxy: other modules count here, this one asks nobody.
"""

from __future__ import annotations

import platform

import twisted
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from bioproxy import __version__

# Without this every counter and histogram is accompanied by a gauge of when it was first counted.
disable_created_metrics()

# Seconds.  From a cached small answer (milliseconds) to a long prompt on a slow machine (many minutes).
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """All metrics of one proxy, as attributes named after what they count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"bioproxy_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"bioproxy_{name}", text, labels, registry=self.registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"bioproxy_{name}", text, labels, registry=self.registry, buckets=SECONDS)

        self.requests = counter("requests", "Requests answered", "endpoint", "template", "code")
        self.request_seconds = seconds("request_seconds", "From a request's arrival to its answer's end", "template")
        self.ttft_seconds = seconds(
            "ttft_seconds", "From a request's arrival to the first bytes of its answer's body", "template"
        )
        self.queue_seconds = seconds("queue_seconds", "Time a request waited at the gate", "template")
        self.queue_depth = gauge("queue_depth", "Requests waiting at the gate")
        self.gate_busy = gauge("gate_busy", "1 while somebody of this kind uses the slot", "kind")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens, reused or computed", "template", "source")
        self.prefill_seconds_saved = counter(
            "prefill_seconds_saved", "Tokens reused times the seconds that computing one takes", "template"
        )
        self.warmups = counter("warmups", "Warm-ups ended", "template", "result")
        self.warmup_seconds = seconds("warmup_seconds", "Duration of whole warm-ups", "template")
        self.preempt_seconds = seconds("preempt_seconds", "From a user's arrival in a warm-up to the gate being free")
        self.template_warm = gauge("template_warm", "1 where a template's current content is warm", "template")
        self.template_tokens = gauge("template_tokens", "Prefix tokens of a template", "template")
        self.template_errors = counter("template_errors", "Files of a template that could not be read", "template")
        self.slot_saves = counter("slot_saves", "Saves of slot 0 to a file", "template", "result")
        self.slot_restores = counter("slot_restores", "Restores of slot 0 from a file", "template", "result")
        self.slot_bytes = counter("slot_bytes", "Bytes of slot files", "direction")
        self.reactor_stall_seconds = seconds("reactor_stall_seconds", "Times over 50 ms that bioproxy stood still")
        self.upstream_up = gauge("upstream_up", "1 while llama-server answers with its model loaded")
        for kind in ("user", "warmup"):
            self.gate_busy.labels(kind).set(0)
        info = gauge("build_info", "Always 1; the labels tell the versions", "version", "twisted", "python")
        info.labels(__version__, twisted.__version__, platform.python_version()).set(1)

    def forget(self, template: str) -> None:
        """Remove all that was counted for a template."""
        for metric in vars(self).values():
            if isinstance(metric, Counter | Gauge | Histogram) and "template" in metric._labelnames:
                metric.remove_by_labels({"template": template})

    def expect(self, template: str) -> None:
        """Let what is counted for a template begin at 0.

        A counter with labels appears with its first event, at 1, and Prometheus cannot know that this was a step.
        """
        self.template_errors.labels(template)
        for counter, results in (
            (self.warmups, ("done", "preempted", "failed")),
            (self.slot_saves, ("ok", "refused", "failed")),
            (self.slot_restores, ("ok", "missing", "refused", "failed", "ineffective")),
        ):
            for result in results:
                counter.labels(template, result)

    def text(self) -> bytes:
        """Return all numbers in Prometheus' text format."""
        return generate_latest(self.registry)
