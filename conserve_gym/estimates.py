"""What each placement would cost: estimates from the ledger and from the engines' costs.

``COLUMNS`` is the one table of them. Networks that score placements see them beside the
observation; nothing here looks at the future or asks an engine.

A turn's time to its first token is estimated as the prompts that wait at its prefill engine, its
own new tokens there, and moves of KV; a decode step as that of the turns that decode there now and
of this one.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from conserve_gym.engine_estimates import (
    NUMBERS,
    OF_ARRAYS,
    OF_FLOATS,
    Turn,
    numbers,
)
from conserve_gym.fleet import Fleet
from conserve_gym.observation import FIELDS_OF, Observation

IntArray = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Column:
    """One number that describes a placement.

    Attributes:
        name: Unique.
        scale: Raw value that maps to 1, about its standard deviation between the placements of one
            decision, over the embedded workloads near saturation.
        meaning: What it says.
    """

    name: str
    scale: float
    meaning: str


COLUMNS: tuple[Column, ...] = (
    # Of the decode engine:
    Column("tbt", 0.3, "log of the estimated decode step over that of the turn alone"),
    Column("kv", 0.35, "KV held there once it is placed, as a share of capacity"),
    Column("kv_full", 0.25, "its excess over 0.8"),
    Column("turns", 0.5, "log1p of turns in flight there"),
    Column("prompts", 0.3, "log1p of seconds of prompts that wait there"),
    Column("tbt_seen", 0.02, "recent TBT there, in seconds"),
    # Of the prefill engine:
    Column("stall", 0.8, "log1p of turns that decode there x 10 x seconds of this prompt"),
    Column("ttft_seen", 0.7, "log1p of recent TTFT there, in seconds"),
    Column("product", 1.0, "log of new prompt tokens x turns in flight there"),
    # Of both:
    Column("wait", 0.7, "log of the estimated TTFT over the prompt's own time alone"),
    Column("wait_squared", 3.0, "its square"),
    Column("ttft", 0.6, "log of the estimated TTFT in seconds"),
    # Where it disaggregates:
    Column("away", 0.45, "1 if it does, else 0"),
    Column("away_later", 0.4, "away, a later turn"),
    Column("away_kv", 0.2, "away x mean share of KV held, over the fleet"),
    Column("away_turns", 0.5, "away x log1p of turns in flight, mean over the fleet"),
    Column("away_new", 3.0, "away x log1p of new tokens"),
    Column("away_at_door", 0.3, "away x log1p of conversations at the door"),
    Column("away_prompts", 0.3, "away x log1p of seconds of prompts that wait at its prefill"),
    # Where another engine decoded the conversation's last turn:
    Column("leaves_home", 0.4, "1 if so, else 0"),
    Column("leaves_home_kv", 0.15, "leaves_home x mean share of KV held, over the fleet"),
    Column("leaves_home_lacking", 3.5, "leaves_home x log1p of tokens that the engine lacks"),
    # Of engines that the cluster sets apart for prefill:
    Column("apart_prefill", 0.4, "1 if it disaggregates to one, else 0"),
    Column("apart_prefill_kv", 0.15, "apart_prefill x mean share of KV held, over the fleet"),
    Column("apart_prefill_prompts", 0.5, "apart_prefill x log1p of seconds that wait there"),
    Column("apart_decode", 0.4, "1 if it decodes at one, else 0"),
    Column("apart_decode_kv", 0.15, "apart_decode x mean share of KV held, over the fleet"),
    # Where it is held at the door; all others are 0 then:
    Column("hold", 0.25, "1 if it is, else 0"),
    Column("hold_kv", 0.15, "hold x mean share of KV held, over the fleet"),
    Column("hold_turns", 0.5, "hold x log1p of turns in flight, mean over the fleet"),
    Column("hold_waited", 0.5, "hold x log1p of seconds that it has waited there"),
    Column("hold_at_door", 0.5, "hold x log1p of conversations at the door"),
)
READS = frozenset(
    {
        "cluster.at_door", "conversation.prompt", "conversation.new", "conversation.waited",
        "engines.pinned", "engines.kv_known", "engines.turns_in_flight", "engines.decoding",
        "engines.prompt_in_flight", "engines.ttft_recent", "engines.tbt_recent", "engines.holds",
    }
)  # fmt: skip
"""Fields of the observation that they are made of; of the turn only whether it is the first."""

TABLE_COLUMNS = 3 + len(COLUMNS)
"""Columns of a placement as networks see it: where, offload_above, and the estimates."""

LARGEST = 10.0
"""Scaled values are clipped to this on both sides."""

_LARGEST = np.array(LARGEST, dtype=np.float32)  # NumPy takes longer for Python's numbers
_SMALLEST = -_LARGEST

_SCALE = {column.name: column.scale for column in COLUMNS}

# Of every engine a number for each of ``NUMBERS`` is computed, then these once. What a placement's
# columns are is found among them: tables are gathered from few numbers, not computed.
_SCALARS = (
    "away", "away_later", "away_kv", "away_turns", "away_new", "away_at_door",
    "leaves_home", "leaves_home_kv", "apart_prefill", "apart_prefill_kv",
    "apart_decode", "apart_decode_kv",
    "hold", "hold_kv", "hold_turns", "hold_waited", "hold_at_door",
)  # fmt: skip
_COLOCATED, _AWAY, _AWAY_TO_HOME = range(3)  # which of the three times to the first token

_KV_KNOWN = next(i for i, field in enumerate(FIELDS_OF["engines"]) if field.name == "kv_known")

FEW = 12
"""Engines up to which floats are computed with: with 12 a decision takes 72 us instead of 84, and
with 16 it takes as long."""


class Estimates:
    """Describes placements on a fleet.

    Args:
        fleet: The engines.
    """

    def __init__(self, fleet: Fleet) -> None:
        """Lay the costs out by engine."""
        n = len(fleet.roles)
        self._few = n <= FEW
        self._engines = np.arange(n)
        self._kinds = frozenset(fleet.costs)  # most fleets have one or two
        costs = np.column_stack((fleet.costs, fleet.kv_capacity_tokens)).astype(np.float64)
        self._costs = costs.tolist() if self._few else costs.T.copy()
        elsewhere = np.concatenate((1.0 - np.eye(n), np.ones((1, n))))  # the last: of no home
        self._pulls = elsewhere.tolist() if self._few else elsewhere
        self._move = fleet.move
        scales = [_SCALE[name] for name in (*NUMBERS * n, *_SCALARS)] + [1.0]
        self._scales = np.array(scales)
        self._pack = struct.Struct(f"{len(scales)}d").pack
        # Where every engine is set apart, none is.
        self._lay_out(np.array(fleet.apart) & (not all(fleet.apart)))

    def _lay_out(self, apart: npt.NDArray[np.bool_]) -> None:
        """Find which number each column is: by decode engine, by prefill engine, or zero."""
        engines, zero = self._engines, len(self._scales) - 1
        n = len(engines)
        first = n * len(NUMBERS)
        number = {name: first + i + 0 * engines for i, name in enumerate(_SCALARS)}
        number |= {name: NUMBERS.index(name) + len(NUMBERS) * engines for name in NUMBERS}
        column = {each.name: i for i, each in enumerate(COLUMNS)}
        # Offsets from the zero, which add up: a column depends on one end of a placement alone.
        by_decode = np.zeros((2, n, len(COLUMNS)), dtype=np.intp)  # at home, or not
        by_prefill = np.zeros((3, n, len(COLUMNS)), dtype=np.intp)
        for name, i in column.items():
            if name in ("tbt", "kv", "kv_full", "turns", "prompts", "tbt_seen"):
                by_decode[:, :, i] = number[name] - zero
            elif name in ("stall", "ttft_seen", "product"):
                by_prefill[:, :, i] = number[name] - zero
            elif name in ("wait", "wait_squared", "ttft"):
                for which in (_COLOCATED, _AWAY, _AWAY_TO_HOME):
                    by_prefill[which, :, i] = number[name] + which - zero
            elif name.startswith("leaves_home"):
                by_decode[1, :, i] = number[name] - zero
            elif name.startswith("apart_decode"):
                by_decode[:, apart, i] = number[name][apart] - zero
            elif name.startswith("apart_prefill"):
                by_prefill[_AWAY:, apart, i] = number[name][apart] - zero
            elif name.startswith("away"):
                by_prefill[_AWAY:, :, i] = number[name] - zero
        held = np.zeros((2, len(COLUMNS)), dtype=np.intp)  # HOLD has no other end
        for name in _SCALARS:
            if name.startswith("hold"):
                held[0, column[name]] = number[name][0] - zero
        offsets = (by_decode.reshape(2 * n, -1), by_prefill.reshape(3 * n, -1), held)
        self._of_ends = np.concatenate(offsets) + zero
        self._zero = zero

    def ends(
        self, prefill_at: IntArray, decode_at: IntArray, home: int = -1, *, hold: bool = False
    ) -> IntArray:
        """Return placements as the two ends that their columns come from, (2, placements).

        Args:
            prefill_at: Prefill engine of each placement.
            decode_at: Decode engine of each.
            home: Engine that decoded the conversation's last turn; -1 before there was one.
            hold: Whether ``HOLD`` follows.
        """
        n = len(self._engines)
        to_home = decode_at == home
        leaves = ~to_home if home >= 0 else to_home  # nobody leaves a home that is none
        which = (prefill_at != decode_at) * (_AWAY + to_home)
        ends = np.stack((decode_at + n * leaves, prefill_at + n * (2 + which)))
        return np.concatenate((ends, [[5 * n], [5 * n + 1]]), axis=1) if hold else ends

    def where(self, ends: IntArray) -> IntArray:
        """Return which of ``numbers`` the columns of placements are, (placements, columns)."""
        first, second = ends
        rows: IntArray = self._of_ends.take(first, axis=0)
        rows += self._of_ends.take(second, axis=0)
        rows -= self._zero
        return rows

    def __call__(self, observation: Observation, ends: IntArray) -> npt.NDArray[np.float32]:
        """Return the scaled estimates of placements, shape (placements, columns)."""
        return self.numbers(observation).take(self.where(ends))

    def weighted(
        self, observation: Observation, ends: IntArray, weights: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return the weighted sum of the estimates of each placement, shape (placements,).

        Each end is summed up once, and placements add two: where there are thousands of them,
        their table is never laid out.
        """
        of_ends = self.numbers(observation).take(self._of_ends).dot(weights)
        first, second = of_ends.take(ends)
        sums: npt.NDArray[np.float32] = first + second
        return sums

    def numbers(self, observation: Observation) -> npt.NDArray[np.float32]:
        """Return every number that placements are described by, scaled."""
        prompt, new, home = observation["prompt"], observation["new"], observation.home
        alone_s = min(costs.prefill_s(new, prompt - new) for costs in self._kinds)
        turn = Turn(prompt, new, home >= 0, alone_s, self._move)
        n, pulls = len(self._engines), self._pulls[home]
        if self._few:
            rows: list[list[float]] = observation.engines.tolist()
            of_engines: list[float] = []
            for costs, row, pull in zip(self._costs, rows, pulls, strict=True):
                of_engines += numbers(OF_FLOATS, costs, row, pull, turn)
            mean_turns = sum(of_engines[:: len(NUMBERS)]) / n
            mean_kv = sum(row[_KV_KNOWN] for row in rows) / n
            scalars = _scalars(observation, mean_turns, mean_kv)
            values = np.frombuffer(self._pack(*of_engines, *scalars))
        else:
            fields = observation.engines.T
            columns = numbers(OF_ARRAYS, self._costs, fields, pulls, turn)
            scalars = _scalars(observation, columns[0].mean(), fields[_KV_KNOWN].mean())
            by_engine = np.concatenate(columns).reshape(-1, n).T.ravel()
            values = np.concatenate((by_engine, scalars))
        scaled: npt.NDArray[np.float32] = (values / self._scales).astype(np.float32)
        np.minimum(scaled, _LARGEST, out=scaled)
        return np.maximum(scaled, _SMALLEST, out=scaled)


def _scalars(observation: Observation, mean_turns: float, mean_kv: float) -> tuple[float, ...]:
    """Return what ``_SCALARS`` names, and a zero."""
    at_door = math.log1p(observation["at_door"])
    waited = math.log1p(observation["waited"])
    later = float(observation.turn > 0)
    return (
        1.0, later, mean_kv, mean_turns, math.log1p(observation["new"]), at_door,
        1.0, mean_kv, 1.0, mean_kv,
        1.0, mean_kv,
        1.0, mean_kv, mean_turns, waited, at_door,
        0.0,
    )  # fmt: skip
