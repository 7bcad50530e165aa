"""What a policy sees: the table of observation fields, their scaling, and one observation.

``FIELDS`` is the one table of observation fields. The environments' spaces and documentation,
the exported policy's header and the runtime all read it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from conserve_gym.fleet import Fleet

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
    Field("conversation", "new", "tokens", 262144.0, "log", "part its own KV does not cover"),
    Field("conversation", "turn", "turns", 512.0, "log", "index of that turn, from 0"),
    Field("conversation", "waited", "s", 600.0, "log", "time that it has waited at the door"),
    Field("engines", "prefills_for_others", "0 or 1", 1.0, "linear", "role prefill or mixed"),
    Field("engines", "decodes", "0 or 1", 1.0, "linear", "role decode or mixed"),
    Field("engines", "kv_capacity", "tokens", 4194304.0, "log", "size of its KV pool"),
    Field("engines", "prefill_speed", "share of the fastest", 1.0, "linear", "of a long prompt"),
    Field("engines", "decode_speed", "share of the fastest", 1.0, "linear", "of a full batch"),
    Field("engines", "pinned", "conversations", 1024.0, "log", "conversations pinned here"),
    Field("engines", "kv_known", "share of capacity", 2.0, "linear", "KV that they hold, as known"),
    Field("engines", "turns_in_flight", "turns", 1024.0, "log", "dispatched here, not finished"),
    Field("engines", "decoding", "turns", 1024.0, "log", "of these, first token seen"),
    Field("engines", "prompt_in_flight", "tokens", 1048576.0, "log", "new prompt tokens waiting"),
    Field("engines", "prompt_waited", "s", 600.0, "log", "age of the oldest waiting prompt"),
    Field("engines", "ttft_recent", "s", 600.0, "log", "recent mean TTFT of turns prefilled here"),
    Field("engines", "tbt_recent", "s", 1.0, "linear", "recent mean TBT of turns decoded here"),
    Field("engines", "silent", "s", 600.0, "log", "time since this engine's last event"),
    Field("engines", "holds", "tokens", 262144.0, "log", "of that prompt, KV left here, as known"),
)

GROUPS: tuple[Group, ...] = ("cluster", "conversation", "engines")
FIELDS_OF: dict[Group, tuple[Field, ...]] = {
    group: tuple(field for field in FIELDS if field.group == group) for group in GROUPS
}

_CONVERSATION_START = len(FIELDS_OF["cluster"])
_ENGINES_START = _CONVERSATION_START + len(FIELDS_OF["conversation"])
_ENGINE_FIELD = {field.name: i for i, field in enumerate(FIELDS_OF["engines"])}
_POSITION = {
    field.name: i for i, field in enumerate(FIELDS_OF["cluster"] + FIELDS_OF["conversation"])
}


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
        self._logarithmic = np.array([field.scale == "log" for field in fields])
        self._high = np.array([field.high for field in fields])
        # Every field is computed both ways, one of them times 0: cheaper than two gathers.
        self._linear_factor = np.where(self._logarithmic, 0.0, 1.0 / self._high)
        self._log_factor = np.where(self._logarithmic, 1.0 / np.log1p(self._high), 0.0)

    def __call__(self, raw: FloatArray) -> npt.NDArray[np.float32]:
        """Scale a flat raw observation of shape (size,)."""
        scaled = np.log1p(raw)
        scaled *= self._log_factor
        scaled += raw * self._linear_factor
        return np.minimum(scaled, 1.0).astype(np.float32)

    def largest_raw(self, scaled: npt.NDArray[np.float32]) -> FloatArray:
        """Return the largest raw values that are scaled to such: of 1 and above it, infinity."""
        logarithmic = np.expm1(scaled * np.log1p(self._high))
        raw = np.where(self._logarithmic, logarithmic, scaled * self._high)
        return np.where(scaled >= 1.0, np.inf, raw)


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


class EngineExport(NamedTuple):
    """What an engine tells of itself, as vLLM's and SGLang's metrics do.

    Attributes:
        prompt_tokens: Prompt tokens that it has still to compute, waiting or begun.
        kv_free_tokens: KV that no running turn holds: free, or of idle conversations.
        decoding: Turns whose prompt is computed and whose answer is not complete.
        kv_read_tokens: KV that a step of these reads, as at the last change among them.
    """

    prompt_tokens: int
    kv_free_tokens: int
    decoding: int
    kv_read_tokens: int


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
        home: Engine that decoded the conversation's last turn; -1 before there was one.
        exports: What each engine tells, where the deployment asks for it; else none.
    """

    time: float
    conversation: int
    turn: int
    fleet: Fleet
    raw: FloatArray
    free_kv_tokens: FloatArray
    open_to: npt.NDArray[np.bool_]
    home: int = -1
    exports: tuple[EngineExport, ...] = ()

    def __getitem__(self, name: str) -> float:
        """Return one raw field of the cluster or of the conversation at the door."""
        return self.raw.item(_POSITION[name])

    @property
    def engines(self) -> FloatArray:
        """The engines' raw fields, shape (engines, fields)."""
        return self.raw[_ENGINES_START:].reshape(len(self.fleet.roles), -1)

    def engine_field(self, name: str) -> FloatArray:
        """Return one raw field of every engine, shape (engines,)."""
        return self.raw[_ENGINES_START + _ENGINE_FIELD[name] :: len(_ENGINE_FIELD)]

    def of_engine(self, name: str, engine: int) -> float:
        """Return one raw field of one engine."""
        return self.raw.item(_ENGINES_START + len(_ENGINE_FIELD) * engine + _ENGINE_FIELD[name])
