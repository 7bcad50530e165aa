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
TABLE_COLUMNS = 3 + len(COLUMNS)
"""Columns of a placement as networks see it: where, offload_above, and the estimates."""

LARGEST = 10.0
"""Scaled values are clipped to this on both sides."""

_ENGINE = {field.name: i for i, field in enumerate(FIELDS_OF["engines"])}
_SCALES = np.array([column.scale for column in COLUMNS])
_DECODE, _PREFILL, _BOTH = slice(0, 6), slice(6, 9), slice(9, 12)
_AWAY, _AWAY_PROMPTS = slice(12, 18), 18
_LEAVES, _LEAVES_LACKING = slice(19, 21), 21
_APART_PREFILL, _APART_PROMPTS, _APART_DECODE = slice(22, 24), 24, slice(25, 27)
_HOLD = slice(27, 32)


class Estimates:
    """Describes placements on a fleet.

    Args:
        fleet: The engines.
    """

    def __init__(self, fleet: Fleet) -> None:
        """Lay the costs out by engine."""
        costs = np.array(fleet.costs, dtype=np.float64).T
        self._token, self._attention, self._least, self._step, self._sequence, self._kv = costs
        self._capacity = np.array(fleet.kv_capacity_tokens, dtype=np.float64)
        # Where every engine is set apart, none is.
        self._apart = np.array(fleet.apart, dtype=np.float64) * (not all(fleet.apart))
        self._move_s, self._move_token_s = fleet.move
        self._engines = np.arange(len(fleet.roles))

    def __call__(
        self,
        observation: Observation,
        prefill_at: IntArray,
        decode_at: IntArray,
        *,
        hold: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Return the scaled estimates, shape (placements, columns).

        Args:
            observation: What is seen.
            prefill_at: Prefill engine of each placement.
            decode_at: Decode engine of each.
            hold: Whether a row for ``HOLD`` follows.
        """
        engines = observation.engines.T
        prompt, new, home = observation["prompt"], observation["new"], observation.home
        decoding = engines[_ENGINE["decoding"]]
        turns = engines[_ENGINE["turns_in_flight"]]
        waiting = engines[_ENGINE["prompt_in_flight"]]
        known = engines[_ENGINE["kv_known"]]
        lacking = np.maximum(prompt - engines[_ENGINE["holds"]], 0.0)
        held = known * self._capacity

        prefill = np.maximum(
            new * (self._token + self._attention * (prompt - new / 2)), self._least
        )
        prompts = np.maximum(turns - decoding, 1.0)
        queue = waiting * (self._token + self._attention / 2 * waiting / prompts)
        first = queue + prefill
        if home >= 0:
            pulled = np.maximum(lacking - new, 0.0)
            pulls = (pulled > 0.0) & (self._engines != home)
            first += pulls * (self._move_s + self._move_token_s * pulled)
        pinned = np.maximum(engines[_ENGINE["pinned"]], 1.0)
        batch = self._step + self._sequence * decoding
        batch += self._kv * held * np.minimum(decoding / pinned, 1.0)
        own = self._sequence + self._kv * prompt
        kv = (held + lacking) / self._capacity
        log_turns, log_queue, log_lacking, stall, ttft_seen = np.log1p(
            (turns, queue, lacking, 10.0 * decoding * prefill, engines[_ENGINE["ttft_recent"]])
        )
        tbt, product = np.log(
            ((batch + own) / (self._step + own), (waiting + new + 10.0) * (turns + 1.0))
        )
        mean_kv, mean_turns = known.sum() / len(known), log_turns.sum() / len(known)

        n = len(prefill_at)
        rows = np.zeros((len(COLUMNS), n + hold))
        of = rows[:, :n]
        tbt_seen = engines[_ENGINE["tbt_recent"]]
        at_decode = np.array(
            (tbt, kv, np.maximum(kv - 0.8, 0.0), log_turns, log_queue, tbt_seen, log_lacking)
        )
        at_decode = at_decode.take(decode_at, axis=1)
        of[_DECODE] = at_decode[:6]
        at_prefill = np.array((stall, ttft_seen, product, first, log_queue))
        at_prefill = at_prefill.take(prefill_at, axis=1)
        of[_PREFILL] = at_prefill[:3]
        away = (prefill_at != decode_at).astype(np.float64)
        moved = prompt if home < 0 else np.where(decode_at == home, new, prompt)
        ttft = at_prefill[3] + away * (self._move_s + self._move_token_s * moved)
        wait, log_ttft = np.log((ttft / prefill.min() + 0.05, ttft + 0.01))
        of[_BOTH] = wait, wait * wait, log_ttft
        at_door = math.log1p(observation["at_door"])
        later = float(observation.turn > 0)
        of[_AWAY] = np.multiply.outer(
            (1.0, later, mean_kv, mean_turns, math.log1p(new), at_door), away
        )
        of[_AWAY_PROMPTS] = away * at_prefill[4]
        if home >= 0:
            leaves = (decode_at != home).astype(np.float64)
            of[_LEAVES] = leaves, mean_kv * leaves
            of[_LEAVES_LACKING] = leaves * at_decode[6]
        apart = self._apart.take(prefill_at) * away
        of[_APART_PREFILL] = apart, mean_kv * apart
        of[_APART_PROMPTS] = apart * at_prefill[4]
        apart = self._apart.take(decode_at)
        of[_APART_DECODE] = apart, mean_kv * apart
        if hold:
            waited = math.log1p(observation["waited"])
            rows[_HOLD, n] = 1.0, mean_kv, mean_turns, waited, at_door
        scaled: npt.NDArray[np.float32] = (rows.T / _SCALES).astype(np.float32)
        return np.clip(scaled, -LARGEST, LARGEST, out=scaled)
