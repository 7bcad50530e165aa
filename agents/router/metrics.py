"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_DECISIONS = (10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 5e-3)


class Metrics:
    """The router's metrics, in a registry of their own; names begin with ``conserve_``."""

    def __init__(self) -> None:
        """Register them."""
        self.registry = r = CollectorRegistry()
        self.requests = Counter(
            "conserve_requests", "Answers to clients", ["path", "status"], registry=r
        )
        self.decisions = Counter(
            "conserve_decisions",
            "Conversations placed, and by what",
            ["kind", "reason"],
            registry=r,
        )
        self.decision_s = Histogram(
            "conserve_decision_seconds", "Observing and deciding", buckets=_DECISIONS, registry=r
        )
        self.transfers = Counter("conserve_kv_transfers", "KV caches moved", registry=r)
        self.transfer_bytes = Counter(
            "conserve_kv_transfer_bytes", "Their size, where engines tell", registry=r
        )
        self.transfer_s = Histogram(
            "conserve_kv_transfer_seconds", "Their time", buckets=_GAPS, registry=r
        )
        self.ttft = Histogram(
            "conserve_ttft_seconds", "Time to first token of turns", buckets=_LATENCIES, registry=r
        )
        self.tbt = Histogram(
            "conserve_tbt_seconds", "Time between events of a stream", buckets=_GAPS, registry=r
        )
        self.ttfet = Histogram(
            "conserve_ttfet_seconds",
            "First token of a conversation's last turn after its arrival",
            buckets=(*_LATENCIES, 250, 500, 1000),
            registry=r,
        )
        self.fallbacks = Counter(
            "conserve_handover_failures",
            "Turns that were to be prefilled elsewhere and were not",
            ["stage"],
            registry=r,
        )
        self.retries = Counter(
            "conserve_retries", "Turns begun again after an engine failed", registry=r
        )
        self.ended = Counter(
            "conserve_conversations_ended", "Conversations gone, and why", ["reason"], registry=r
        )
        self.reloads = Counter(
            "conserve_policy_reloads", "Policies read", ["policy", "outcome"], registry=r
        )
        self.engine_up = Gauge(
            "conserve_engine_up", "Whether an engine answers", ["engine"], registry=r
        )
        self.ledger_events = Gauge("conserve_ledger_events", "Events so far", registry=r)
        self.conversations = Gauge("conserve_conversations", "Live conversations", registry=r)
        self.at_door = Gauge("conserve_at_door", "Conversations that wait for room", registry=r)
        self.log_dropped = Gauge(
            "conserve_log_dropped", "Entries that the decision log could not write", registry=r
        )
        self.shadow_decisions = Gauge(
            "conserve_shadow_decisions", "Decisions that the candidate took too", registry=r
        )
        self.shadow_disagreements = Gauge(
            "conserve_shadow_disagreements", "Of these, that differ", registry=r
        )
