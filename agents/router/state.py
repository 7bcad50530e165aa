"""What the page for people shows: no text of a conversation, and no client's name."""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter

from conserve_gym.agents.router.router import Router


def state(router: Router) -> dict[str, Any]:
    """Return engines, decisions and incidents as they are now."""
    runtime, metrics = router.runtime, router.metrics
    scheduler, shadow = runtime.scheduler, runtime.shadow
    summary = runtime.summary()
    fields: dict[str, list[float]] = summary["engines"]
    engines = [
        {
            "name": engine.name,
            "role": str(runtime.fleet.roles[i]),
            "up": engine.up,
            "says": engine.says if not engine.up else "",
            "kv_tokens": runtime.fleet.kv_capacity_tokens[i],
            **{name: values[i] for name, values in fields.items()},
        }
        for i, engine in enumerate(router.engines)
    ]
    return {
        "time": summary["time"],
        "policy": scheduler.name,
        "reason": scheduler.reason,
        "cluster": summary["cluster"],
        "counts": {
            "decisions": _by_label(metrics.decisions, "kind"),
            "decided_by": _by_label(metrics.decisions, "reason"),
            "answers": _by_label(metrics.requests, "status"),
            "kv_transfers": sum(_by_label(metrics.transfers, "").values()),
            "handover_failures": sum(_by_label(metrics.fallbacks, "stage").values()),
            "retries": sum(_by_label(metrics.retries, "").values()),
        },
        "engines": engines,
        "latest": list(router.books.latest),
        "incidents": list(router.incidents.latest),
        "shadow": shadow
        and {
            "policy": shadow.scheduler.name,
            "decisions": shadow.decisions,
            "disagreements": shadow.disagreements,
        },
    }


def _by_label(counter: Counter, label: str) -> dict[str, int]:
    """Return a counter's values, added up by one of its labels."""
    found: dict[str, int] = {}
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                key = sample.labels.get(label, "")
                found[key] = found.get(key, 0) + int(sample.value)
    return found
