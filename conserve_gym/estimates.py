"""What each placement would cost: estimates from the ledger and from the engines' costs.

``COLUMNS`` is the one table of them. Networks that score placements see them beside the
observation; nothing here looks at the future or asks an engine.

A turn's time to its first token is estimated as the prompts that wait at its prefill engine, its
own new tokens there, and moves of KV; a decode step as that of the turns that decode there now and
of this one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from conserve_gym.fleet import Fleet
from conserve_gym.observation import Observation

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

_SCALE = {column.name: column.scale for column in COLUMNS}

# What is computed: of every engine a number in each of these rows, then the scalars once. What a
# placement's columns are is found among them: tables are gathered from few numbers, not computed.
_OF_ENGINES = (
    "turns", "prompts", "ttft_seen", "stall", "leaves_home_lacking",  # logarithms of 1 + x
    "tbt", "product", "wait", "wait", "wait", "ttft", "ttft", "ttft",  # and of x
    "wait_squared", "wait_squared", "wait_squared",
    "kv", "kv_full", "tbt_seen", "away_prompts", "apart_prefill_prompts",
)  # fmt: skip
_LOG1P, _LOG = slice(0, 5), slice(5, 13)
_WAIT, _TTFT, _SQUARED, _QUEUES = slice(7, 10), slice(10, 13), slice(13, 16), slice(19, 21)
_SCALARS = (
    "away", "away_later", "away_kv", "away_turns", "away_new", "away_at_door",
    "leaves_home", "leaves_home_kv", "apart_prefill", "apart_prefill_kv",
    "apart_decode", "apart_decode_kv",
    "hold", "hold_kv", "hold_turns", "hold_waited", "hold_at_door",
)  # fmt: skip
_COLOCATED, _AWAY, _AWAY_TO_HOME = range(3)  # which of the three times to the first token


class Estimates:
    """Describes placements on a fleet.

    Args:
        fleet: The engines.
    """

    def __init__(self, fleet: Fleet) -> None:
        """Lay the costs out by engine."""
        costs = np.array(fleet.costs, dtype=np.float64).T.copy()
        self._token, self._attention, self._least, self._step, self._sequence, self._kv = costs
        self._half_attention = self._attention / 2
        self._capacity = np.array(fleet.kv_capacity_tokens, dtype=np.float64)
        self._move_s, self._move_token_s = fleet.move
        self._engines = np.arange(len(fleet.roles))
        scales = [_SCALE[name] for name in _OF_ENGINES for _ in fleet.roles]
        self._scales = np.array(scales + [_SCALE[name] for name in _SCALARS] + [1.0])
        # Where every engine is set apart, none is.
        self._lay_out(np.array(fleet.apart) & (not all(fleet.apart)))

    def _lay_out(self, apart: npt.NDArray[np.bool_]) -> None:
        """Find which number each column is: by decode engine, by prefill engine, or zero."""
        engines, zero = self._engines, len(self._scales) - 1
        n = len(engines)
        first = n * len(_OF_ENGINES)
        number = {name: first + i + 0 * engines for i, name in enumerate(_SCALARS)}
        number |= {name: n * _OF_ENGINES.index(name) + engines for name in _OF_ENGINES}
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
                    by_prefill[which, :, i] = number[name] + which * n - zero
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
        of_ends = self.numbers(observation).take(self._of_ends) @ weights
        first, second = of_ends.take(ends)
        sums: npt.NDArray[np.float32] = first + second
        return sums

    def numbers(self, observation: Observation) -> npt.NDArray[np.float32]:
        """Return every number that placements are described by, scaled."""
        prompt, new, home = observation["prompt"], observation["new"], observation.home
        n = len(self._engines)
        values = np.empty(len(self._scales))
        rows = values[: n * len(_OF_ENGINES)].reshape(-1, n)
        (
            log_turns, queue, ttft_seen, stall, lacking, tbt, product, *_,
        ) = rows[: _WAIT.start]  # fmt: skip
        first, first_away, first_to_home = rows[_TTFT]
        kv, kv_full, tbt_seen = rows[_SQUARED.stop : _QUEUES.start]
        (
            _, _, _, _, _, pinned, known, turns, decoding, waiting, _, ttft_recent, tbt_recent, _,
            holds,
        ) = observation.engines.T  # fmt: skip

        np.maximum(prompt - holds, 0.0, out=lacking)
        held = known * self._capacity
        prefill = self._attention * (prompt - new / 2)
        prefill += self._token
        prefill *= new
        np.maximum(prefill, self._least, out=prefill)
        prompts = turns - decoding
        np.maximum(prompts, 1.0, out=prompts)
        np.multiply(self._half_attention, waiting, out=queue)
        queue /= prompts
        queue += self._token
        queue *= waiting
        np.add(queue, prefill, out=first)
        if home >= 0:
            pulled = np.maximum(lacking - new, 0.0)
            pulls = (pulled > 0.0) & (self._engines != home)
            first += pulls * (self._move_s + self._move_token_s * pulled)
        np.add(first, self._move_s + self._move_token_s * prompt, out=first_away)
        np.add(first, self._move_s + self._move_token_s * new, out=first_to_home)
        share = decoding / np.maximum(pinned, 1.0)
        np.minimum(share, 1.0, out=share)
        share *= self._kv * held
        batch = self._sequence * decoding
        batch += self._step
        batch += share
        own = self._kv * prompt
        own += self._sequence
        batch += own
        own += self._step
        np.divide(batch, own, out=tbt)
        np.add(waiting, new + 10.0, out=product)
        product *= turns + 1.0
        np.multiply(decoding, 10.0, out=stall)
        stall *= prefill
        log_turns[:] = turns
        ttft_seen[:] = ttft_recent
        tbt_seen[:] = tbt_recent
        held += lacking
        np.divide(held, self._capacity, out=kv)
        np.subtract(kv, 0.8, out=kv_full)
        np.maximum(kv_full, 0.0, out=kv_full)
        ttft, wait = rows[_TTFT], rows[_WAIT]
        np.divide(ttft, np.minimum.reduce(prefill), out=wait)
        wait += 0.05
        ttft += 0.01
        np.log1p(rows[_LOG1P], out=rows[_LOG1P])
        np.log(rows[_LOG], out=rows[_LOG])
        np.multiply(wait, wait, out=rows[_SQUARED])
        rows[_QUEUES] = queue

        mean_kv = float(np.add.reduce(known)) / n
        mean_turns = float(np.add.reduce(log_turns)) / n
        at_door = math.log1p(observation["at_door"])
        waited = math.log1p(observation["waited"])
        later = float(observation.turn > 0)
        values[n * len(_OF_ENGINES) :] = (
            1.0, later, mean_kv, mean_turns, math.log1p(new), at_door,
            1.0, mean_kv, 1.0, mean_kv,
            1.0, mean_kv,
            1.0, mean_kv, mean_turns, waited, at_door,
            0.0,
        )  # fmt: skip
        values /= self._scales
        scaled: npt.NDArray[np.float32] = values.astype(np.float32)
        np.minimum(scaled, LARGEST, out=scaled)
        return np.maximum(scaled, -LARGEST, out=scaled)
