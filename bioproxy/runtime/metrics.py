"""All metrics of bioproxy, in one table.

prometheus-client keeps the numbers and writes them as text for Prometheus to collect.  There are three kinds: a
*counter* only grows, a *gauge* goes up and down, a *histogram* sorts observations (here: seconds) into buckets, from
which Prometheus computes percentiles.  A *label* splits a number into several: `template` is the template's name, or
empty for a request without a template.

The numbers belong to one `Metrics` object instead of prometheus-client's global registry, because the tests build many
proxies in one process, and each of them has to begin at zero.

Metrics need no lock here.  Twisted runs all of bioproxy's code in one thread; what runs in other threads (reading
template files) counts nothing.

Does not know the rest of bioproxy: other modules count here, and this one calls none of them.  The names are part of
the interface that dashboards and alerts rely on (`examples/`), so they stay as they are.
"""

from __future__ import annotations

import platform

import twisted
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from bioproxy import __version__

# Without this, prometheus-client adds a gauge to every counter and histogram, with the time of its first count.
disable_created_metrics()

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
"""Upper limits of all histograms' buckets, in seconds.

They reach from a short cached answer (milliseconds) to a long prompt on a slow machine (many minutes).  Each is about
twice the one before, so a percentile is right within that factor.  Twice as many buckets would make it more exact, but
double the size of `/metrics`, because each template has all of them.
"""

RATIOS = (0.25, 0.5, 0.7, 1, 1.3, 2, 4)
"""Upper limits of the buckets for estimates: 1 is exact, and 0.7 to 1.3 is good.  More would only make it larger."""


class Metrics:
    """All metrics of one proxy.

    Each attribute is one metric; its name is the attribute's with ``bioproxy_`` in front (and ``_total`` behind, for a
    counter).  The text beside the name is what Prometheus shows as help.
    """

    def __init__(self) -> None:
        """Make all metrics, each at zero."""
        self.registry = CollectorRegistry()

        # Three short names, so that the table below has one line for each metric.

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"bioproxy_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"bioproxy_{name}", text, labels, registry=self.registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"bioproxy_{name}", text, labels, registry=self.registry, buckets=SECONDS)

        # Requests, as clients see them.
        self.requests = counter("requests", "Requests answered", "endpoint", "template", "code")
        self.request_seconds = seconds("request_seconds", "From a request's arrival to its answer's end", "template")
        self.ttft_seconds = seconds(
            "ttft_seconds", "From a request's arrival to the first bytes of its answer's body", "template"
        )
        self.queue_seconds = seconds("queue_seconds", "Time a request waited at the gate", "template")
        self.estimate_ratio = Histogram(
            "bioproxy_estimate_ratio",
            "Time a request waited at the gate, as a multiple of the estimate at its arrival",
            registry=self.registry,
            buckets=RATIOS,
        )
        self.slot_uses = counter("slot_uses", "Requests by how the slot came to hold their prompt", "template", "cache")
        # What it cost the others that requests which go on with the slot's conversation may pass.
        self.passed_over_seconds = seconds("passed_over_seconds", "Time by which a waiting request was passed over")
        self.linger = counter("linger", "Times that the gate waited for a conversation's next request", "result")
        # The gate, as it is now.
        self.queue_depth = gauge("queue_depth", "Requests waiting at the gate")
        self.gate_busy = gauge("gate_busy", "1 while somebody of this kind uses the slot", "kind")
        # What bioproxy is for: tokens that did not have to be computed, and the time that this saved.
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens, reused or computed", "template", "source")
        self.prefill_seconds_saved = counter(
            "prefill_seconds_saved", "Tokens reused times the seconds that computing one takes", "template"
        )
        # Warm-ups, and how long they keep a user waiting.
        self.warmups = counter("warmups", "Warm-ups ended", "template", "result")
        self.warmup_seconds = seconds("warmup_seconds", "Duration of whole warm-ups", "template")
        self.preempt_seconds = seconds("preempt_seconds", "From a user's arrival in a warm-up to the gate being free")
        # Conversations that were processed as their clients will send them back, and how many of these guesses were
        # right.
        self.head_starts = counter("head_starts", "Head starts of conversations ended", "template", "result")
        # Templates, as they are now.
        self.template_warm = gauge("template_warm", "1 where a template's current content is warm", "template")
        self.template_tokens = gauge("template_tokens", "Prefix tokens of a template", "template")
        self.template_errors = counter("template_errors", "Files of a template that could not be read", "template")
        # Slot files, by the result of each save and restore.
        self.slot_saves = counter("slot_saves", "Saves of slot 0 to a file", "template", "result")
        self.slot_restores = counter("slot_restores", "Restores of slot 0 from a file", "template", "result")
        self.slot_parked = counter(
            "slot_parked", "Prompts without a file, put into llama-server's memory before a restore", "result"
        )
        self.slot_bytes = counter("slot_bytes", "Bytes of slot files", "direction")
        # All slot files together, by class: a template's prompt, a learned prompt, a conversation.
        self.shelf_files = gauge("shelf_files", "Slot files", "kind")
        self.shelf_bytes = gauge("shelf_bytes", "Bytes of all slot files", "kind")
        self.shelf_removed = counter("shelf_removed", "Slot files removed to stay within a limit", "kind")
        # The shelf that several bioproxies share, as far as this one uses it.
        self.shared_shelf_up = gauge("shared_shelf_up", "1 while the shared shelf can be used")
        self.shared_files = counter("shared_files", "Slot files shared with other bioproxies", "action", "result")
        self.shared_bytes = counter("shared_bytes", "Bytes of slot files shared with other bioproxies", "action")
        self.shared_tokens = counter("shared_tokens", "Tokens fetched instead of computed")
        self.shared_warmups_saved = counter("shared_warmups_saved", "Warm-ups whose file another bioproxy had")
        # bioproxy and llama-server themselves.
        self.reactor_stall_seconds = seconds("reactor_stall_seconds", "Times over 50 ms that bioproxy stood still")
        self.llama_restarts = counter("llama_restarts", "Times that bioproxy has started its llama.cpp again")
        self.upstream_up = gauge("upstream_up", "1 while llama-server answers with its model loaded")
        # A metric with labels has no value before the labels' first use; these are meant to be 0 from the start.
        for kind in ("user", "warmup"):
            self.gate_busy.labels(kind).set(0)
        for result in ("came", "timeout", "abandoned"):
            self.linger.labels(result)
        for result in ("parked", "reused", "lost", "failed"):
            self.slot_parked.labels(result)
        # Prometheus has numbers only, so the usual way to report a version is a label of a constant.
        info = gauge("build_info", "Always 1; the labels tell the versions", "version", "twisted", "python")
        info.labels(__version__, twisted.__version__, platform.python_version()).set(1)

    def forget(self, template: str) -> None:
        """Remove all that was counted for a template, because a reload has removed the template.

        Otherwise `/metrics` would grow with each name that was ever configured, and a gauge such as ``template_warm``
        would keep its last value for ever.
        """
        # prometheus-client has no public way to ask a metric for the names of its labels.
        for metric in vars(self).values():
            if isinstance(metric, Counter | Gauge | Histogram) and "template" in metric._labelnames:
                metric.remove_by_labels({"template": template})

    def expect(self, template: str) -> None:
        """Make the counters of a template appear with the value 0.

        A counter with labels appears with its first event, already at 1.  Prometheus computes rates from differences
        between two values, so it would miss that first event: the first error of a template, for example.
        """
        # Asking for a metric with labels creates it with the value 0.  The lists are all results that occur.
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
