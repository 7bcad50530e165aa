"""Latencies, SLOs and energy of conversations, read from the ledger.

Two clocks. The user's, the default: from a conversation's arrival, every queue counted. The
artifact's, for comparison with the ConServe paper (``conversation.py`` and ``s5_metrics.py`` of
github.com/jerryding95/conserve at 2a8c3bc, 2026-06-10): from its admission, and without turn 1's
queue at the prefill engine where later turns stay at their decoder, because there turn 1's
prefill was measured apart and added afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from conserve_gym.ledger import (
    ConversationEnded,
    Event,
    FirstToken,
    KvMoved,
    Placed,
    Prefilled,
    TurnArrived,
    TurnFinished,
)

Clock = Literal["user", "artifact"]
CLOCKS: tuple[Clock, ...] = ("user", "artifact")

SLO_FACTOR = 5.0
"""A latency meets its SLO up to this many times the conversation's standalone value."""

LATENCIES = ("ttfet", "tbt", "e2e")


class StandaloneLatencies(Protocol):
    """What a conversation's latencies would be with an engine to itself, in seconds."""

    @property
    def ttfet_s(self) -> float:
        """First token of the last turn minus arrival."""

    @property
    def last_tbt_s(self) -> float:
        """Mean gap between tokens within the last turn; 0 with one token."""

    @property
    def e2e_s(self) -> float:
        """Last token minus arrival."""


class Normalised(NamedTuple):
    """Latencies of a conversation as multiples of its standalone ones.

    Attributes:
        ttfet: Time to first effective token: the first token of the last turn.
        tbt: Mean time between tokens of the last turn; NaN if it has one token.
        e2e: Time to the last token.
    """

    ttfet: float
    tbt: float
    e2e: float

    @property
    def attains_slo(self) -> bool:
        """Whether all three are within the SLO; a last turn of one token has no TBT to miss."""
        return self.ttfet <= SLO_FACTOR and self.e2e <= SLO_FACTOR and not self.tbt > SLO_FACTOR


@dataclass
class ConversationRecord:
    """What the ledger says of one conversation; complete once it has ended.

    Attributes:
        conversation: Identifier.
        arrived_s: Arrival at the router.
        placed_s: Admission by the door.
        prefiller_queue_s: What turn 1 waited at a prefill engine.
        stitched: Whether the artifact's clock leaves that queue out.
        first_token_s: First token of the latest turn.
        ended_s: End of the latest turn.
        ttft_s: Time to first token of each turn.
        last_output_tokens: Output of the latest turn.
        context_tokens: Full prompts, history included, summed over the turns.
        new_tokens: New prompt tokens, summed over the turns.
        output_tokens: Output, summed over the turns.
        kv_moves: KV transfers, pulls of history to where a later prompt is computed included.
        moved_tokens: Tokens that they moved.
    """

    conversation: int
    arrived_s: float
    turn_arrived_s: float
    placed_s: float = math.nan
    prefiller_queue_s: float = 0.0
    stitched: bool = False
    first_token_s: float = math.nan
    ended_s: float = math.nan
    ttft_s: list[float] = field(default_factory=list)
    last_output_tokens: int = 0
    context_tokens: int = 0
    new_tokens: int = 0
    output_tokens: int = 0
    kv_moves: int = 0
    moved_tokens: int = 0

    def starts_s(self, clock: Clock) -> float:
        """Return when the conversation's clock starts."""
        if clock == "user":
            return self.arrived_s
        return self.placed_s + (self.prefiller_queue_s if self.stitched else 0.0)

    @property
    def last_tbt_s(self) -> float:
        """Mean gap between tokens of the last turn; NaN with one token."""
        if self.last_output_tokens < 2:
            return math.nan
        return (self.ended_s - self.first_token_s) / (self.last_output_tokens - 1)

    def normalised(self, standalone: StandaloneLatencies, clock: Clock = "user") -> Normalised:
        """Return the latencies as multiples of the standalone ones."""
        start = self.starts_s(clock)
        tbt = self.last_tbt_s / standalone.last_tbt_s if standalone.last_tbt_s else math.nan
        return Normalised(
            (self.first_token_s - start) / standalone.ttfet_s,
            tbt,
            (self.ended_s - start) / standalone.e2e_s,
        )


class RecordReader:
    """Reads ledger events and hands out each conversation's record when it has ended."""

    def __init__(self) -> None:
        """Start without conversations."""
        self._live: dict[int, ConversationRecord] = {}
        self.output_by_engine: dict[int, int] = {}

    def read(self, events: Iterable[Event]) -> list[ConversationRecord]:
        """Take events in and return the records of conversations that they end."""
        ended = []
        for event in events:
            if isinstance(event, ConversationEnded):
                ended.append(self._live.pop(event.conversation))
            elif handler := _HANDLERS.get(type(event)):
                handler(self, event)
        return ended

    def _on_turn_arrived(self, event: TurnArrived) -> None:
        record = self._live.get(event.conversation)
        if record is None:
            record = ConversationRecord(event.conversation, event.time, event.time)
            self._live[event.conversation] = record
        record.turn_arrived_s = event.time
        record.context_tokens += event.input_tokens
        record.new_tokens += event.new_tokens

    def _on_placed(self, event: Placed) -> None:
        if event.turn == 0:
            record = self._live[event.conversation]
            record.placed_s = event.time
            record.stitched = math.isinf(event.offload_above)

    def _on_prefilled(self, event: Prefilled) -> None:
        if event.turn == 0:
            self._live[event.conversation].prefiller_queue_s = event.queued_s

    def _on_kv_moved(self, event: KvMoved) -> None:
        record = self._live[event.conversation]
        record.kv_moves += 1
        record.moved_tokens += event.tokens

    def _on_first_token(self, event: FirstToken) -> None:
        record = self._live[event.conversation]
        record.first_token_s = event.time
        record.ttft_s.append(event.time - record.turn_arrived_s)

    def _on_turn_finished(self, event: TurnFinished) -> None:
        record = self._live[event.conversation]
        record.ended_s = event.time
        record.last_output_tokens = event.output_tokens
        record.output_tokens += event.output_tokens
        by_engine = self.output_by_engine
        by_engine[event.engine] = by_engine.get(event.engine, 0) + event.output_tokens


_HANDLERS: dict[type, Callable[[RecordReader, Any], None]] = {
    TurnArrived: RecordReader._on_turn_arrived,
    Placed: RecordReader._on_placed,
    Prefilled: RecordReader._on_prefilled,
    KvMoved: RecordReader._on_kv_moved,
    FirstToken: RecordReader._on_first_token,
    TurnFinished: RecordReader._on_turn_finished,
}


def summarise(
    records: Sequence[ConversationRecord],
    standalone: Sequence[StandaloneLatencies],
    *,
    joules: float,
    output_by_engine: dict[int, int],
    decoders: Sequence[int],
    kv_bytes_per_token: float,
) -> dict[str, float]:
    """Return every metric of an episode; those on the artifact's clock begin with ``artifact_``.

    Args:
        records: The conversations that ended.
        standalone: Standalone latencies of each, in the same order.
        joules: Energy of all engines until the last one ended, idle time included.
        output_by_engine: Tokens that each engine decoded.
        decoders: Engines that could decode.
        kv_bytes_per_token: Size of a token in the KV cache.

    ``kv_moves_per_conversation`` and ``kv_moved_gb`` count every move, pulls of history included.
    """
    metrics: dict[str, float] = {}
    span_s = max(record.ended_s for record in records)
    for clock in CLOCKS:
        prefix = "" if clock == "user" else "artifact_"
        latencies = [r.normalised(s, clock) for r, s in zip(records, standalone, strict=True)]
        attained = sum(one.attains_slo for one in latencies)
        metrics[prefix + "slo_attainment_pct"] = 100.0 * attained / len(records)
        metrics[prefix + "goodput_per_s"] = attained / span_s
        for i, name in enumerate(LATENCIES):
            values = np.array([one[i] for one in latencies])
            metrics.update(statistics(prefix + name, values[~np.isnan(values)]))
    ttft = np.array([value for record in records for value in record.ttft_s])
    for percent in (50, 95, 99):
        metrics[f"ttft_s_p{percent}"] = float(np.percentile(ttft, percent))
    outputs = sum(record.output_tokens for record in records)
    contexts = sum(record.context_tokens for record in records)
    metrics["tokens_per_joule"] = (contexts + outputs) / joules
    new = sum(record.new_tokens for record in records)
    metrics["tokens_per_joule_no_history"] = (new + outputs) / joules
    metrics["energy_kj"] = joules * 1e-3
    metrics["kv_moves_per_conversation"] = sum(r.kv_moves for r in records) / len(records)
    moved = sum(record.moved_tokens for record in records)
    metrics["kv_moved_gb"] = moved * kv_bytes_per_token * 1e-9
    decoded = [output_by_engine.get(engine, 0) for engine in decoders]
    metrics["imbalance"] = max(decoded) * len(decoded) / sum(decoded)
    shares = np.array(decoded) / sum(decoded)
    metrics["decode_entropy"] = normalised_entropy(shares, len(decoded))
    metrics["door_wait_s_mean"] = sum(r.placed_s - r.arrived_s for r in records) / len(records)
    metrics["span_s"] = span_s
    return metrics


def statistics(name: str, values: np.ndarray) -> dict[str, float]:
    """Return geometric mean, percentiles and SLO violations of normalised latencies by name."""
    if not values.size:
        return dict.fromkeys(
            [f"{name}_{s}" for s in ("gmean", "p50", "p95", "p99", "slo_violation_pct")], math.nan
        )
    return {
        f"{name}_gmean": float(np.exp(np.log(values).mean())),
        **{f"{name}_p{p}": float(np.percentile(values, p)) for p in (50, 95, 99)},
        f"{name}_slo_violation_pct": 100.0 * float((values > SLO_FACTOR).mean()),
    }


def normalised_entropy(shares: npt.NDArray[np.float64], able: int) -> float:
    """Return the entropy of engines' shares over the largest that there could be.

    Args:
        shares: Share of each engine; they add up to 1.
        able: How many engines could have one.

    Returns:
        1 where all that are able have the same, 0 where one of several has all.
    """
    if able < 2:
        return 1.0
    taken = shares[shares > 0.0]
    return float(-(taken * np.log(taken)).sum() / math.log(able))
