"""What each placement would cost: estimates from the ledger and from the engines' costs.

``COLUMNS`` is the one table of them. Networks that score placements see them beside the
observation; nothing here looks at the future or asks an engine.

A turn's time to its first token is estimated as the prompts that wait at its prefill engine, its
own new tokens there, and moves of KV; a decode step as that of the turns that decode there now and
of this one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from conserve_gym.fleet import Fleet
from conserve_gym.observation import FIELDS_OF, FloatArray, Observation

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
    Column("wait", 0.7, "log of the estimated TTFT over the prompt's own time alone"),
    Column("wait_squared", 3.0, "its square"),
    Column("ttft", 0.6, "log of the estimated TTFT in seconds"),
    Column("stall", 0.8, "log1p of decoding turns x 10 x seconds of this prompt, at its prefill"),
    Column("tbt", 0.3, "log of the estimated decode step over that of the turn alone"),
    Column("kv", 0.35, "KV held there once it is placed, as a share of capacity"),
    Column("kv_full", 0.25, "its excess over 0.8"),
    Column("turns", 0.5, "log1p of turns in flight at the decode engine"),
    Column("prompts", 0.3, "log1p of seconds of prompts that wait at the decode engine"),
    Column("product", 1.0, "log of new prompt tokens x turns in flight at the prefill engine"),
    Column("tbt_seen", 0.02, "recent TBT of the decode engine, in seconds"),
    Column("ttft_seen", 0.7, "log1p of recent TTFT of the prefill engine, in seconds"),
    Column("away", 0.45, "1 if it disaggregates, else 0"),
    Column("away_later", 0.4, "1 if it disaggregates a later turn"),
    Column("away_kv", 0.2, "away x mean share of KV held, over the fleet"),
    Column("away_turns", 0.5, "away x log1p of mean turns in flight, over the fleet"),
    Column("away_new", 3.0, "away x log1p of new tokens"),
    Column("away_at_door", 0.3, "away x log1p of conversations at the door"),
    Column("away_prompts", 0.3, "away x log1p of seconds of prompts that wait at its prefill"),
    Column("leaves_home", 0.4, "1 if another engine decoded the conversation's last turn"),
    Column("leaves_home_lacking", 3.5, "leaves_home x log1p of tokens that the engine lacks"),
    Column("leaves_home_kv", 0.15, "leaves_home x mean share of KV held, over the fleet"),
    Column("apart_prefill", 0.4, "away, to an engine that the cluster sets apart for prefill"),
    Column("apart_prefill_kv", 0.15, "apart_prefill x mean share of KV held, over the fleet"),
    Column("apart_prefill_prompts", 0.5, "apart_prefill x log1p of seconds that wait there"),
    Column("apart_decode", 0.4, "1 if it decodes at an engine set apart for prefill"),
    Column("apart_decode_kv", 0.15, "apart_decode x mean share of KV held, over the fleet"),
)
TABLE_COLUMNS = 3 + len(COLUMNS)
"""Columns of a placement as networks see it: where, offload_above, and the estimates."""

LARGEST = 10.0
"""Scaled values are clipped to this on both sides."""

_ENGINE = {field.name: i for i, field in enumerate(FIELDS_OF["engines"])}
_SCALES = np.array([column.scale for column in COLUMNS])


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
        self, observation: Observation, prefill_at: IntArray, decode_at: IntArray
    ) -> npt.NDArray[np.float32]:
        """Return the scaled estimates, shape (placements, columns).

        Args:
            observation: What is seen.
            prefill_at: Prefill engine of each placement.
            decode_at: Decode engine of each.
        """
        p, d = prefill_at, decode_at
        engines = observation.engines.T
        prompt, new, home = observation["prompt"], observation["new"], observation.home
        decoding = engines[_ENGINE["decoding"]]
        turns = engines[_ENGINE["turns_in_flight"]]
        waiting = engines[_ENGINE["prompt_in_flight"]]
        lacking = prompt - engines[_ENGINE["holds"]]
        held = engines[_ENGINE["kv_known"]] * self._capacity

        prefill = np.maximum(
            new * (self._token + self._attention * (prompt - new / 2)), self._least
        )
        prompts = np.maximum(turns - decoding, 1.0)
        queue = waiting * (self._token + self._attention * waiting / prompts / 2)
        pulled = np.maximum(lacking - new, 0.0)
        pull = np.where(
            (pulled > 0.0) & (home >= 0) & (self._engines != home),
            self._move_s + self._move_token_s * pulled,
            0.0,
        )
        pinned = np.maximum(engines[_ENGINE["pinned"]], 1.0)
        batch = self._step + self._sequence * decoding
        batch += self._kv * held * np.minimum(decoding / pinned, 1.0)
        own = self._sequence + self._kv * prompt
        tbt = np.log((batch + own) / (self._step + own))
        kv = (held + prompt) / self._capacity
        log_queue, log_turns = np.log1p(queue), np.log1p(turns)
        mean_kv = float(engines[_ENGINE["kv_known"]].mean())
        # What depends on the prefill engine, and what on the decode engine, (columns, engines).
        at_prefill = np.stack(
            [
                queue + prefill + pull,
                np.log1p(10.0 * decoding * prefill),
                np.log((waiting + new + 10.0) * (turns + 1.0)),
                np.log1p(engines[_ENGINE["ttft_recent"]]),
                log_queue,
                self._apart,
            ]
        )[:, p]
        at_decode = np.stack(
            [
                tbt,
                kv,
                np.maximum(kv - 0.8, 0.0),
                log_turns,
                log_queue,
                engines[_ENGINE["tbt_recent"]],
                np.log1p(lacking),
                self._apart,
                np.where(self._engines == home, new, prompt),
            ]
        )[:, d]
        first, stall, product, ttft_seen, prefill_queue, apart_p = at_prefill
        tbt, kv, kv_full, turns, decode_queue, tbt_seen, lacks, apart_d, moved = at_decode
        away = (p != d).astype(np.float64)
        first = first + away * (self._move_s + self._move_token_s * moved)
        wait = np.log(first / prefill.min() + 0.05)
        leaves = ((d != home) & (home >= 0)).astype(np.float64)
        apart_p = apart_p * away
        columns: tuple[FloatArray, ...] = (
            wait,
            wait * wait,
            np.log(first + 0.01),
            stall,
            tbt,
            kv,
            kv_full,
            turns,
            decode_queue,
            product,
            tbt_seen,
            ttft_seen,
            away,
            away * (observation.turn > 0),
            away * mean_kv,
            away * float(log_turns.mean()),
            away * float(np.log1p(new)),
            away * float(np.log1p(observation["at_door"])),
            away * prefill_queue,
            leaves,
            leaves * lacks,
            leaves * mean_kv,
            apart_p,
            apart_p * mean_kv,
            apart_p * prefill_queue,
            apart_d,
            apart_d * mean_kv,
        )
        scaled = np.stack(columns, axis=1)
        scaled /= _SCALES
        return scaled.clip(-LARGEST, LARGEST).astype(np.float32)
