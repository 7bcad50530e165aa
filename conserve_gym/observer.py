"""From the ledger to the observation: statistics of what has happened, and nothing else."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

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
    TurnAborted,
    TurnArrived,
    TurnFinished,
)
from conserve_gym.observation import FIELDS, FIELDS_OF, RECENT_S, FloatArray, Observation
from conserve_gym.placement import Placement
from conserve_gym.running_statistics import DecayedMean, RunningMoments

_Stage = Literal["at the door", "prompt", "handed over", "decoding", "between turns"]

_N_ENGINE = len(FIELDS_OF["engines"])
_ENGINES_START = len(FIELDS) - _N_ENGINE
# Where in the flat observation the first engine's fields stand that events change.
_FIELD = {field.name: i for i, field in enumerate(FIELDS_OF["engines"], start=_ENGINES_START)}
_PINNED, _KV_KNOWN, _IN_FLIGHT, _DECODING, _PROMPTS = (
    _FIELD[name]
    for name in ("pinned", "kv_known", "turns_in_flight", "decoding", "prompt_in_flight")
)
_TTFT, _TBT, _HOLDS = (_FIELD[name] for name in ("ttft_recent", "tbt_recent", "holds"))
# Ages grow by themselves: of them the time is kept from which they count.
_WAITED, _SILENT = _FIELD["prompt_waited"], _FIELD["silent"]


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
    turn: int = 0
    home: int = -1
    held: dict[int, int] = field(default_factory=dict)  # engine: tokens of its KV left there
    stage: _Stage = "at the door"

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> _Conversation:
        restored = cls(**state)
        if state["placement"] is not None:
            at, to, tokens = state["placement"]
            restored.placement = Placement(at, to, math.inf if tokens is None else tokens)
        restored.held = {int(engine): tokens for engine, tokens in state["held"].items()}
        return restored

    def state(self) -> dict[str, Any]:
        values = asdict(self)
        if self.placement is not None:
            at, to, tokens = self.placement
            values["placement"] = [at, to, None if math.isinf(tokens) else tokens]
        return values


class _Engine:
    """What the ledger says of an engine, beside the fields of its row."""

    def __init__(self) -> None:
        self.prompts: dict[int, tuple[float, int]] = {}  # conversation: dispatched at, new tokens
        self.ttft = DecayedMean(RECENT_S)
        self.tbt = DecayedMean(RECENT_S)


class Observer:
    """Reads a ledger as it grows and keeps the statistics of ``FIELDS``.

    Args:
        ledger: The ledger to read; the simulator's or a router's.
        fleet: Roles and capacities of its engines.
        deployment: How the engines are run.

    Attributes:
        kv_known_tokens: KV tokens that conversations pinned to each engine are known to hold.
    """

    def __init__(
        self, ledger: Ledger, fleet: Fleet, deployment: Deployment = DEFAULT_DEPLOYMENT
    ) -> None:
        """Start at the ledger's first event."""
        self._ledger = ledger
        self._cursor = 0
        self._fleet = fleet
        self._every_turn = deployment.decides_every_turn
        self._prefix_caching = deployment.prefix_caching
        self._pulls_history = deployment.pulls_history
        self._opens_at_once = deployment.reservation is Reservation.NONE
        self._capacity = np.array(fleet.kv_capacity_tokens, dtype=np.float64)
        self._decodes = np.array([role.decodes for role in fleet.roles])
        # The flat observation as events change it; an array's items are set faster than NumPy's.
        self._row = array("d", [0.0] * _ENGINES_START)
        for role, *facts in zip(
            fleet.roles,
            fleet.kv_capacity_tokens,
            fleet.prefill_speeds,
            fleet.decode_speeds,
            strict=True,
        ):
            known_beforehand = [role.prefills_for_others, role.decodes, *facts]
            self._row.extend(known_beforehand + [0.0] * (_N_ENGINE - len(known_beforehand)))
        self._engines = [_Engine() for _ in fleet.roles]
        for engine in range(len(fleet.roles)):
            self._row[_WAITED + _N_ENGINE * engine] = math.inf
        self.kv_known_tokens = [0] * len(fleet.roles)
        self._free = array("d", fleet.kv_capacity_tokens)
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
            TurnAborted: self._on_turn_aborted,
            ConversationEnded: self._on_conversation_ended,
        }

    @property
    def is_idle(self) -> bool:
        """Whether no turn is under way anywhere."""
        return not any(self._row[_IN_FLIGHT::_N_ENGINE])

    def update(self) -> None:
        """Read the events that were appended since the last call."""
        new = self._ledger.since(self._cursor)
        if new:
            self.read(new)
            self._cursor += len(new)

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

    def state(self) -> dict[str, Any]:
        """Return all that is known, as plain values for ``restore``."""
        self.update()
        return {
            "engines": [self._engine_state(engine) for engine in range(len(self._engines))],
            "kv_known_tokens": list(self.kv_known_tokens),
            "conversations": [[key, one.state()] for key, one in self._conversations.items()],
            "at_door": self._at_door,
            "arrivals": self._arrivals.state(),
            "turns": self._turns.state(),
            "appended": self._appended.state(),
            "outputs": self._outputs.state(),
            "kv_moves": self._kv_moves.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Know what another observer of the same fleet and deployment knew.

        Args:
            state: What ``state`` returned there.

        Raises:
            LedgerError: It is not that of such a fleet.
        """
        if len(state["engines"]) != len(self._engines):
            raise LedgerError(f"a state of {len(state['engines'])} engines, not of this fleet")
        for engine, known in enumerate(state["engines"]):
            self._restore_engine(engine, known)
            self._hold_at(engine, state["kv_known_tokens"][engine])
        self._conversations = {
            key: _Conversation.from_state(one) for key, one in state["conversations"]
        }
        self._at_door = state["at_door"]
        self._arrivals = DecayedMean.from_state(RECENT_S, state["arrivals"])
        self._turns = RunningMoments.from_state(state["turns"])
        self._appended = RunningMoments.from_state(state["appended"])
        self._outputs = RunningMoments.from_state(state["outputs"])
        self._kv_moves = DecayedMean.from_state(RECENT_S, state["kv_moves"])

    def unfinished(self) -> list[tuple[int, int]]:
        """Return conversation and index of every turn that has arrived and not finished."""
        self.update()
        return [
            (key, one.turn)
            for key, one in self._conversations.items()
            if one.stage != "between turns"
        ]

    def observe(
        self,
        now: float,
        conversation: int,
        turn: int = 0,
        *,
        taken_kv_tokens: Sequence[int] | None = None,
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
            free = np.array(self._free)
        else:
            free = self._capacity - np.array(taken_kv_tokens, dtype=np.float64)
        needed = door.prompt if footprint_tokens is None else footprint_tokens
        open_to = self._decodes & (self._opens_at_once or free >= needed)
        return Observation(
            now, conversation, turn, self._fleet, self._raw(now, door), free, open_to, door.home
        )

    def blank(self, now: float) -> Observation:
        """Return what is known when no conversation is at the door any more."""
        self.update()
        nobody = _Conversation(arrived_s=now, prompt=0, new_tokens=0)
        raw, free = self._raw(now, nobody), np.array(self._free)
        return Observation(now, -1, 0, self._fleet, raw, free, self._decodes.copy())

    def _raw(self, now: float, door: _Conversation) -> FloatArray:
        raw = np.array(self._row)
        raw[:_ENGINES_START] = (
            self._arrivals.rate(now),
            len(self._conversations) - self._at_door,
            self._at_door,
            self._turns.mean,
            self._turns.std,
            self._appended.mean,
            self._appended.std,
            self._outputs.mean,
            self._outputs.std,
            self._kv_moves.mean,
            door.prompt,
            door.new_tokens,
            door.turn,
            now - door.arrived_s,
        )
        waited, silent = raw[_WAITED::_N_ENGINE], raw[_SILENT::_N_ENGINE]
        np.subtract(now, waited, out=waited)
        np.maximum(waited, 0.0, out=waited)  # minus infinity where no prompt waits
        np.subtract(now, silent, out=silent)
        for engine, tokens in door.held.items():
            raw[_HOLDS + _N_ENGINE * engine] = tokens
        return raw

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
        conversation.turn = event.turn
        still_valid = event.input_tokens - event.new_tokens
        conversation.held = {
            engine: min(tokens, still_valid) for engine, tokens in conversation.held.items()
        }
        if self._every_turn:
            self._at_door += 1
            conversation.stage = "at the door"
        else:
            assert conversation.placement is not None
            self._hold(conversation, event.input_tokens)
            self._dispatch(event.time, event.conversation, conversation, placed=False)

    def _on_placed(self, event: Placed) -> None:
        conversation = self._conversations[event.conversation]
        conversation.placement = Placement(event.prefill_at, event.decode_at, event.offload_above)
        self._at_door -= 1
        self._row[_PINNED + _N_ENGINE * event.decode_at] += 1
        self._hold(conversation, conversation.prompt)
        self._dispatch(event.time, event.conversation, conversation, placed=True)

    def _on_prefilled(self, event: Prefilled) -> None:
        conversation = self._conversations[event.conversation]
        # Not where the event says: a turn may have been sent elsewhere than it was placed.
        self._take_prompt(event.time, event.conversation, conversation.prefilled_at)
        assert conversation.placement is not None
        self._row[_IN_FLIGHT + _N_ENGINE * conversation.placement.decode_at] += 1
        conversation.stage = "handed over"

    def _on_kv_moved(self, event: KvMoved) -> None:
        self._kv_moves.add(event.time, event.seconds)

    def _on_first_token(self, event: FirstToken) -> None:
        conversation = self._conversations[event.conversation]
        conversation.first_token_s = event.time
        row, at = self._row, _N_ENGINE * event.engine
        if conversation.stage == "handed over":
            row[_IN_FLIGHT + at] -= 1
        else:  # also where a prefill elsewhere has failed and the decoder did it itself
            self._take_prompt(event.time, event.conversation, conversation.prefilled_at)
        conversation.stage = "decoding"
        row[_IN_FLIGHT + at] += 1
        row[_DECODING + at] += 1
        row[_SILENT + at] = event.time
        recent = self._engines[conversation.prefilled_at].ttft
        recent.add(event.time, event.time - conversation.dispatched_s)
        row[_TTFT + _N_ENGINE * conversation.prefilled_at] = recent.mean

    def _on_turn_finished(self, event: TurnFinished) -> None:
        conversation = self._conversations[event.conversation]
        row, at = self._row, _N_ENGINE * event.engine
        row[_IN_FLIGHT + at] -= 1
        row[_DECODING + at] -= 1
        conversation.stage = "between turns"
        row[_SILENT + at] = event.time
        if event.output_tokens > 1:
            tbt = (event.time - conversation.first_token_s) / (event.output_tokens - 1)
            recent = self._engines[event.engine].tbt
            recent.add(event.time, tbt)
            row[_TBT + at] = recent.mean
        self._outputs.add(event.output_tokens)
        if self._prefix_caching:
            conversation.held[conversation.prefilled_at] = event.input_tokens
            conversation.held[event.engine] = event.input_tokens + event.output_tokens
        conversation.home = event.engine
        if self._every_turn:
            self._unpin(conversation)
        else:
            self._hold(conversation, event.input_tokens + event.output_tokens)

    def _on_turn_aborted(self, event: TurnAborted) -> None:
        conversation = self._conversations[event.conversation]
        placement = conversation.placement
        if conversation.stage == "at the door":
            self._at_door -= 1
        elif conversation.stage == "prompt":
            self._take_prompt(event.time, event.conversation, conversation.prefilled_at)
        elif placement is not None and conversation.stage == "handed over":
            self._row[_IN_FLIGHT + _N_ENGINE * placement.decode_at] -= 1
        elif placement is not None and conversation.stage == "decoding":
            self._row[_IN_FLIGHT + _N_ENGINE * placement.decode_at] -= 1
            self._row[_DECODING + _N_ENGINE * placement.decode_at] -= 1
        conversation.stage = "between turns"

    def _on_conversation_ended(self, event: ConversationEnded) -> None:
        conversation = self._conversations.pop(event.conversation)
        if conversation.placement is not None:
            self._unpin(conversation)
        self._turns.add(event.turns)

    # --- bookkeeping that several events share ---

    def _dispatch(
        self, time: float, key: int, conversation: _Conversation, *, placed: bool
    ) -> None:
        placement = conversation.placement
        assert placement is not None
        offloaded = placement.offloads(placed, conversation.new_tokens)
        at = placement.prefill_at if offloaded else placement.decode_at
        conversation.dispatched_s = time
        conversation.stage = "prompt"
        conversation.prefilled_at = at
        if self._prefix_caching and self._pulls_history:
            tokens = conversation.new_tokens
        else:
            tokens = conversation.prompt - conversation.held.get(at, 0)
        prompts = self._engines[at].prompts
        row, start = self._row, _N_ENGINE * at
        if not prompts:
            row[_WAITED + start] = time
        prompts[key] = (time, tokens)
        row[_PROMPTS + start] += tokens
        row[_IN_FLIGHT + start] += 1

    def _take_prompt(self, time: float, key: int, at: int) -> None:
        prompts = self._engines[at].prompts
        _, tokens = prompts.pop(key)
        row, start = self._row, _N_ENGINE * at
        row[_PROMPTS + start] -= tokens
        row[_IN_FLIGHT + start] -= 1
        row[_WAITED + start] = _oldest(prompts)
        row[_SILENT + start] = time

    def _hold(self, conversation: _Conversation, tokens: int) -> None:
        assert conversation.placement is not None
        engine = conversation.placement.decode_at
        self._hold_at(engine, self.kv_known_tokens[engine] + tokens - conversation.kv_tokens)
        conversation.kv_tokens = tokens

    def _hold_at(self, engine: int, tokens: int) -> None:
        capacity = self._fleet.kv_capacity_tokens[engine]
        self.kv_known_tokens[engine] = tokens
        self._free[engine] = capacity - tokens
        self._row[_KV_KNOWN + _N_ENGINE * engine] = tokens / capacity

    def _unpin(self, conversation: _Conversation) -> None:
        assert conversation.placement is not None
        self._hold(conversation, 0)
        self._row[_PINNED + _N_ENGINE * conversation.placement.decode_at] -= 1
        conversation.placement = None

    # --- saving and restoring ---

    def _engine_state(self, index: int) -> dict[str, Any]:
        engine, row, at = self._engines[index], self._row, _N_ENGINE * index
        decoding = int(row[_DECODING + at])
        return {
            "pinned": int(row[_PINNED + at]),
            "decoding": decoding,
            "handed_over": int(row[_IN_FLIGHT + at]) - decoding - len(engine.prompts),
            "prompts": [[key, *prompt] for key, prompt in engine.prompts.items()],
            "prompt_tokens": int(row[_PROMPTS + at]),
            "ttft": engine.ttft.state(),
            "tbt": engine.tbt.state(),
            "last_event_s": row[_SILENT + at],
        }

    def _restore_engine(self, index: int, state: Mapping[str, Any]) -> None:
        engine, row, at = self._engines[index], self._row, _N_ENGINE * index
        engine.prompts = {key: (time, tokens) for key, time, tokens in state["prompts"]}
        engine.ttft = DecayedMean.from_state(RECENT_S, state["ttft"])
        engine.tbt = DecayedMean.from_state(RECENT_S, state["tbt"])
        row[_PINNED + at] = state["pinned"]
        row[_IN_FLIGHT + at] = len(engine.prompts) + state["handed_over"] + state["decoding"]
        row[_DECODING + at] = state["decoding"]
        row[_PROMPTS + at] = state["prompt_tokens"]
        row[_WAITED + at] = _oldest(engine.prompts)
        row[_TTFT + at] = engine.ttft.mean
        row[_TBT + at] = engine.tbt.mean
        row[_SILENT + at] = state["last_event_s"]


def _oldest(prompts: Mapping[int, tuple[float, int]]) -> float:
    """Return when the prompt that waits longest was dispatched; infinity if none waits."""
    for time, _ in prompts.values():
        return time
    return math.inf
