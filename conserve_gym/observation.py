"""What a policy sees: statistics of the ledger up to now, and nothing else.

``FIELDS`` is the one table of observation fields. The environments' spaces and documentation,
the exported policy's header and the runtime all read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from conserve_gym.deployment import DEFAULT_DEPLOYMENT, Deployment, Reservation
from conserve_gym.fleet import Fleet
from conserve_gym.ledger import (
    ConversationEnded,
    Event,
    FirstToken,
    KvMoved,
    Ledger,
    LedgerError,
    Placed,
    Prefilled,
    TurnArrived,
    TurnFinished,
)
from conserve_gym.placement import Placement
from conserve_gym.running_statistics import DecayedMean, RunningMoments

FloatArray: TypeAlias = npt.NDArray[np.float64]
Group = Literal["cluster", "conversation", "engines"]

RECENT_S = 30.0
"""Time constant of everything called recent: an event counts 1/e after this many seconds."""


@dataclass(frozen=True)
class Field:
    """One number of the observation.

    Attributes:
        group: Where it stands: once a cluster, once for the conversation at the door, or once
            an engine.
        name: Unique within the group.
        unit: Unit of the raw value.
        high: Raw value that maps to 1; larger ones are clipped. The smallest raw value is 0.
        scale: How raw values map to [0, 1]: ``linear`` is x / high, ``log`` is
            log(1 + x) / log(1 + high).
        meaning: What it says. A statistic without data yet is 0.
    """

    group: Group
    name: str
    unit: str
    high: float
    scale: Literal["linear", "log"]
    meaning: str


FIELDS: tuple[Field, ...] = (
    Field("cluster", "arrivals_recent", "conversations/s", 50.0, "log", "recent arrival rate"),
    Field("cluster", "live_conversations", "conversations", 4096.0, "log", "placed, not yet ended"),
    Field("cluster", "at_door", "conversations", 4096.0, "log", "arrived, not yet placed"),
    Field("cluster", "turns_mean", "turns", 512.0, "log", "turns of ended conversations, mean"),
    Field("cluster", "turns_std", "turns", 512.0, "log", "their standard deviation"),
    Field("cluster", "appended_mean", "tokens", 131072.0, "log", "new tokens of later turns, mean"),
    Field("cluster", "appended_std", "tokens", 131072.0, "log", "their standard deviation"),
    Field("cluster", "output_mean", "tokens", 16384.0, "log", "output of finished turns, mean"),
    Field("cluster", "output_std", "tokens", 16384.0, "log", "their standard deviation"),
    Field("cluster", "kv_move_recent", "s", 10.0, "log", "recent mean time of a KV move"),
    Field("conversation", "prompt", "tokens", 262144.0, "log", "prompt of the turn at the door"),
    Field("conversation", "waited", "s", 600.0, "log", "time that it has waited at the door"),
    Field("engines", "prefills_for_others", "0 or 1", 1.0, "linear", "role prefill or mixed"),
    Field("engines", "decodes", "0 or 1", 1.0, "linear", "role decode or mixed"),
    Field("engines", "pinned", "conversations", 1024.0, "log", "conversations pinned here"),
    Field("engines", "kv_known", "share of capacity", 2.0, "linear", "KV that they hold, as known"),
    Field("engines", "turns_in_flight", "turns", 1024.0, "log", "dispatched here, not finished"),
    Field("engines", "decoding", "turns", 1024.0, "log", "of these, first token seen"),
    Field("engines", "prompt_in_flight", "tokens", 1048576.0, "log", "new prompt tokens waiting"),
    Field("engines", "prompt_waited", "s", 600.0, "log", "age of the oldest waiting prompt"),
    Field("engines", "ttft_recent", "s", 600.0, "log", "recent mean TTFT of turns prefilled here"),
    Field("engines", "tbt_recent", "s", 1.0, "linear", "recent mean TBT of turns decoded here"),
    Field("engines", "silent", "s", 600.0, "log", "time since this engine's last event"),
)

GROUPS: tuple[Group, ...] = ("cluster", "conversation", "engines")
FIELDS_OF: dict[Group, tuple[Field, ...]] = {
    group: tuple(field for field in FIELDS if field.group == group) for group in GROUPS
}

_CONVERSATION_START = len(FIELDS_OF["cluster"])
_ENGINES_START = _CONVERSATION_START + len(FIELDS_OF["conversation"])
_ENGINE_FIELD = {field.name: i for i, field in enumerate(FIELDS_OF["engines"])}


def field_table() -> list[dict[str, str | float]]:
    """Return the table as plain records, as it stands in an exported policy's header.

    Every field comes from the router's own ledger, so none is stale at decision time.
    """
    constants = {"low": 0.0, "missing": 0.0, "staleness_s": 0.0}
    return [{**asdict(field), **constants} for field in FIELDS]


class Scaler:
    """Maps raw observations of a fleet of fixed size to [0, 1].

    Args:
        n_engines: Number of engines.

    Attributes:
        size: Numbers in the flat observation.
        names: Name of each.
    """

    def __init__(self, n_engines: int) -> None:
        """Lay the fields out: cluster, conversation, then each engine in turn."""
        fields = (
            *FIELDS_OF["cluster"],
            *FIELDS_OF["conversation"],
            *(FIELDS_OF["engines"] * n_engines),
        )
        self.size = len(fields)
        self.names = tuple(
            f"{f.group}.{f.name}" for f in (*FIELDS_OF["cluster"], *FIELDS_OF["conversation"])
        ) + tuple(f"engines[{i}].{f.name}" for i in range(n_engines) for f in FIELDS_OF["engines"])
        logarithmic = np.array([field.scale == "log" for field in fields])
        high = np.array([field.high for field in fields])
        # Every field is computed both ways, one of them times 0: cheaper than two gathers.
        self._linear_factor = np.where(logarithmic, 0.0, 1.0 / high)
        self._log_factor = np.where(logarithmic, 1.0 / np.log1p(high), 0.0)

    def __call__(self, raw: FloatArray) -> npt.NDArray[np.float32]:
        """Scale a flat raw observation of shape (size,)."""
        scaled = np.log1p(raw)
        scaled *= self._log_factor
        scaled += raw * self._linear_factor
        # NaN passes through: the runtime must see it.
        return np.minimum(scaled, 1.0).astype(np.float32)


def split(scaled: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the groups of a flat scaled observation: vectors, and (engines, fields) for engines.

    The order of the groups is that of the flat observation, and alphabetical, as Gymnasium's
    ``FlattenObservation`` has it.
    """
    return {
        "cluster": scaled[:_CONVERSATION_START],
        "conversation": scaled[_CONVERSATION_START:_ENGINES_START],
        "engines": scaled[_ENGINES_START:].reshape(-1, len(FIELDS_OF["engines"])),
    }


@dataclass(frozen=True, eq=False)
class Observation:
    """Everything that a policy may look at when a conversation stands at the door.

    Attributes:
        time: Seconds since the ledger's start.
        conversation: Identifier of the conversation at the door.
        turn: Index of its turn at the door (0 where policies decide once a conversation).
        fleet: Roles and capacities of the engines.
        raw: All fields of ``FIELDS`` unscaled: cluster, conversation, then each engine; (size,).
        free_kv_tokens: KV capacity less what the door counts as taken, for each engine.
        open_to: Whether the conversation may be pinned to each engine now.
    """

    time: float
    conversation: int
    turn: int
    fleet: Fleet
    raw: FloatArray
    free_kv_tokens: FloatArray
    open_to: npt.NDArray[np.bool_]

    @property
    def engines(self) -> FloatArray:
        """The engines' raw fields, shape (engines, fields)."""
        return self.raw[_ENGINES_START:].reshape(len(self.fleet.roles), -1)

    def engine_field(self, name: str) -> FloatArray:
        """Return one raw field of every engine, shape (engines,)."""
        return self.engines[:, _ENGINE_FIELD[name]]


@dataclass
class _Conversation:
    """What the ledger says of a live conversation."""

    arrived_s: float
    prompt: int
    new_tokens: int
    placement: Placement | None = None
    kv_tokens: int = 0
    dispatched_s: float = 0.0
    prefilled_at: int = -1
    first_token_s: float = 0.0


class _Engine:
    """What the ledger says of an engine."""

    def __init__(self) -> None:
        self.pinned = 0
        self.kv_tokens = 0
        self.decoding = 0
        self.handed_over = 0  # prefilled elsewhere, first token not seen
        self.prompts: dict[int, tuple[float, int]] = {}  # conversation: dispatched at, new tokens
        self.prompt_tokens = 0
        self.ttft = DecayedMean(RECENT_S)
        self.tbt = DecayedMean(RECENT_S)
        self.last_event_s = 0.0


class Observer:
    """Reads a ledger as it grows and keeps the statistics of ``FIELDS``.

    Args:
        ledger: The ledger to read; the simulator's or a router's.
        fleet: Roles and capacities of its engines.
        deployment: How the engines are run.
    """

    def __init__(
        self, ledger: Ledger, fleet: Fleet, deployment: Deployment = DEFAULT_DEPLOYMENT
    ) -> None:
        """Start at the ledger's first event."""
        self._ledger = ledger
        self._cursor = 0
        self._fleet = fleet
        self._every_turn = deployment.decides_every_turn
        self._opens_at_once = deployment.reservation is Reservation.NONE
        self._capacity = np.array(fleet.kv_capacity_tokens, dtype=np.float64)
        self._decodes = np.array([role.decodes for role in fleet.roles])
        self._roles = [
            (float(role.prefills_for_others), float(role.decodes)) for role in fleet.roles
        ]
        self._engines = [_Engine() for _ in fleet.roles]
        self._conversations: dict[int, _Conversation] = {}
        self._at_door = 0
        self._arrivals = DecayedMean(RECENT_S)
        self._turns = RunningMoments()
        self._appended = RunningMoments()
        self._outputs = RunningMoments()
        self._kv_moves = DecayedMean(RECENT_S)
        self._handlers: dict[type, Callable[[Any], None]] = {
            TurnArrived: self._on_turn_arrived,
            Placed: self._on_placed,
            Prefilled: self._on_prefilled,
            KvMoved: self._on_kv_moved,
            FirstToken: self._on_first_token,
            TurnFinished: self._on_turn_finished,
            ConversationEnded: self._on_conversation_ended,
        }

    def update(self) -> None:
        """Read the events that were appended since the last call."""
        self.read(self._ledger.since(self._cursor))
        self._cursor = len(self._ledger)

    def read(self, events: Iterable[Event]) -> None:
        """Take events into the statistics."""
        handlers = self._handlers
        for event in events:
            handler = handlers.get(type(event))
            if handler is not None:
                try:
                    handler(event)
                except (KeyError, IndexError):
                    raise LedgerError(
                        f"{event} does not follow from the events before it"
                    ) from None

    def kv_known_tokens(self, engine: int) -> int:
        """KV tokens that conversations pinned to an engine are known to hold."""
        return self._engines[engine].kv_tokens

    def observe(
        self,
        now: float,
        conversation: int,
        turn: int = 0,
        *,
        taken_kv_tokens: FloatArray | None = None,
        footprint_tokens: int | None = None,
    ) -> Observation:
        """Return what is known at time ``now`` with a conversation at the door.

        Args:
            now: Seconds since the ledger's start.
            conversation: The conversation at the door; its ``TurnArrived`` is in the ledger.
            turn: Its turn at the door.
            taken_kv_tokens: KV that an oracle counts as taken on each engine, instead of what is
                known to be.
            footprint_tokens: KV that an oracle asks for, instead of the prompt.
        """
        self.update()
        door = self._conversations[conversation]
        if taken_kv_tokens is None:
            taken_kv_tokens = np.array([e.kv_tokens for e in self._engines], dtype=np.float64)
        free = self._capacity - taken_kv_tokens
        needed = door.prompt if footprint_tokens is None else footprint_tokens
        open_to = self._decodes & (self._opens_at_once or (free >= needed))
        return Observation(
            now, conversation, turn, self._fleet, self._raw(now, door), free, open_to
        )

    def blank(self, now: float) -> Observation:
        """Return what is known when no conversation is at the door any more."""
        self.update()
        nobody = _Conversation(arrived_s=now, prompt=0, new_tokens=0)
        free = self._capacity - np.array([e.kv_tokens for e in self._engines], dtype=np.float64)
        return Observation(
            now, -1, 0, self._fleet, self._raw(now, nobody), free, self._decodes.copy()
        )

    def _raw(self, now: float, door: _Conversation) -> FloatArray:
        values = [
            self._arrivals.rate(now),
            float(len(self._conversations) - self._at_door),
            float(self._at_door),
            self._turns.mean,
            self._turns.std,
            self._appended.mean,
            self._appended.std,
            self._outputs.mean,
            self._outputs.std,
            self._kv_moves.mean,
            float(door.prompt),
            now - door.arrived_s,
        ]
        for engine, capacity, (prefills, decodes) in zip(
            self._engines, self._fleet.kv_capacity_tokens, self._roles, strict=True
        ):
            oldest = next(iter(engine.prompts.values()))[0] if engine.prompts else now
            values += (
                prefills,
                decodes,
                engine.pinned,
                engine.kv_tokens / capacity,
                len(engine.prompts) + engine.handed_over + engine.decoding,
                engine.decoding,
                engine.prompt_tokens,
                now - oldest,
                engine.ttft.mean,
                engine.tbt.mean,
                now - engine.last_event_s,
            )
        return np.array(values, dtype=np.float64)

    # --- one handler an event ---

    def _on_turn_arrived(self, event: TurnArrived) -> None:
        if event.turn == 0:
            self._arrivals.add(event.time, 1.0)
            self._conversations[event.conversation] = _Conversation(
                event.time, event.input_tokens, event.new_tokens
            )
            self._at_door += 1
            return
        self._appended.add(event.new_tokens)
        conversation = self._conversations[event.conversation]
        conversation.arrived_s = event.time
        conversation.prompt = event.input_tokens
        conversation.new_tokens = event.new_tokens
        if self._every_turn:
            self._at_door += 1
        else:
            assert conversation.placement is not None
            self._hold(conversation, event.input_tokens)
            self._dispatch(event.time, event.conversation, conversation, event.turn)

    def _on_placed(self, event: Placed) -> None:
        conversation = self._conversations[event.conversation]
        conversation.placement = Placement(event.prefill_at, event.decode_at, event.offload_above)
        self._at_door -= 1
        self._engines[event.decode_at].pinned += 1
        self._hold(conversation, conversation.prompt)
        self._dispatch(event.time, event.conversation, conversation, event.turn)

    def _on_prefilled(self, event: Prefilled) -> None:
        self._take_prompt(event.time, event.conversation, event.engine)
        placement = self._conversations[event.conversation].placement
        assert placement is not None
        self._engines[placement.decode_at].handed_over += 1

    def _on_kv_moved(self, event: KvMoved) -> None:
        self._kv_moves.add(event.time, event.seconds)

    def _on_first_token(self, event: FirstToken) -> None:
        conversation = self._conversations[event.conversation]
        conversation.first_token_s = event.time
        engine = self._engines[event.engine]
        if event.conversation in engine.prompts:
            self._take_prompt(event.time, event.conversation, event.engine)
        else:
            engine.handed_over -= 1
        engine.decoding += 1
        engine.last_event_s = event.time
        ttft = event.time - conversation.dispatched_s
        self._engines[conversation.prefilled_at].ttft.add(event.time, ttft)

    def _on_turn_finished(self, event: TurnFinished) -> None:
        conversation = self._conversations[event.conversation]
        engine = self._engines[event.engine]
        engine.decoding -= 1
        engine.last_event_s = event.time
        if event.output_tokens > 1:
            tbt = (event.time - conversation.first_token_s) / (event.output_tokens - 1)
            engine.tbt.add(event.time, tbt)
        self._outputs.add(event.output_tokens)
        if self._every_turn:
            self._unpin(conversation)
        else:
            self._hold(conversation, event.input_tokens + event.output_tokens)

    def _on_conversation_ended(self, event: ConversationEnded) -> None:
        conversation = self._conversations.pop(event.conversation)
        if conversation.placement is not None:
            self._unpin(conversation)
        self._turns.add(event.turns)

    # --- bookkeeping that several events share ---

    def _dispatch(self, time: float, key: int, conversation: _Conversation, turn: int) -> None:
        placement = conversation.placement
        assert placement is not None
        offloaded = placement.offloads(turn, conversation.new_tokens)
        at = placement.prefill_at if offloaded else placement.decode_at
        conversation.dispatched_s = time
        conversation.prefilled_at = at
        reuses_kv = not (offloaded or self._every_turn)
        tokens = conversation.new_tokens if reuses_kv else conversation.prompt
        self._engines[at].prompts[key] = (time, tokens)
        self._engines[at].prompt_tokens += tokens

    def _take_prompt(self, time: float, key: int, at: int) -> None:
        engine = self._engines[at]
        _, tokens = engine.prompts.pop(key)
        engine.prompt_tokens -= tokens
        engine.last_event_s = time

    def _hold(self, conversation: _Conversation, tokens: int) -> None:
        assert conversation.placement is not None
        engine = self._engines[conversation.placement.decode_at]
        engine.kv_tokens += tokens - conversation.kv_tokens
        conversation.kv_tokens = tokens

    def _unpin(self, conversation: _Conversation) -> None:
        assert conversation.placement is not None
        self._hold(conversation, 0)
        self._engines[conversation.placement.decode_at].pinned -= 1
        conversation.placement = None
