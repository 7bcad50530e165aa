"""What an engine would do to a turn, and the turn to it: one formula, for floats and for arrays.

Of a few engines floats are computed with, one engine after the other, and of many arrays: NumPy's
calls take as long for four numbers as for forty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from conserve_gym.costs import MoveCosts
from conserve_gym.observation import FloatArray

N = TypeVar("N", float, FloatArray)


@dataclass(frozen=True)
class Functions(Generic[N]):
    """What operators do not compute, of an engine's numbers or of arrays with one an engine."""

    maximum: Callable[[N, N | float], N]
    minimum: Callable[[N, float], N]
    log: Callable[[N], N]
    log1p: Callable[[N], N]


OF_FLOATS: Functions[float] = Functions(max, min, math.log, math.log1p)
OF_ARRAYS: Functions[FloatArray] = Functions(np.maximum, np.minimum, np.log, np.log1p)


class Turn(NamedTuple):
    """The turn at the door.

    Attributes:
        prompt: Tokens of its prompt.
        new: Of these, tokens that are not in its conversation's KV.
        has_home: Whether an engine decoded the conversation's last turn.
        alone_s: Seconds that the new ones take alone, on the engine that is fastest at it.
        move: What moves of KV cost.
    """

    prompt: float
    new: float
    has_home: bool
    alone_s: float
    move: MoveCosts


NUMBERS = (
    "turns", "prompts", "ttft_seen", "stall", "leaves_home_lacking", "tbt", "product",
    "wait", "wait", "wait", "ttft", "ttft", "ttft", "wait_squared", "wait_squared", "wait_squared",
    "kv", "kv_full", "tbt_seen", "away_prompts", "apart_prefill_prompts",
)  # fmt: skip
"""The estimates' columns that ``numbers`` returns; three times each where it matters whether the
turn is decoded where it is prefilled, elsewhere, or elsewhere and that is the conversation's home.
"""


def numbers(
    of: Functions[N], costs: Iterable[N], row: Iterable[N], pulls: N, turn: Turn
) -> tuple[N, ...]:
    """Return what ``NUMBERS`` names.

    Args:
        of: How to compute.
        costs: Those of ``EngineCosts``, then the KV capacity in tokens.
        row: The engine's fields of the observation, unscaled.
        pulls: 0 at the conversation's home, and 1 at engines that would pull from it what they
            lack.
        turn: The turn.
    """
    log, log1p, maximum = of.log, of.log1p, of.maximum
    prompt, new, has_home, alone_s, (move_s, move_token_s) = turn
    token, attention, least, step, sequence, kv_token, capacity = costs
    (
        _, _, _, _, _, pinned, known, turns, decoding, waiting, _, ttft_seen, tbt_seen, _, holds,
    ) = row  # fmt: skip

    prefill = maximum((attention * (prompt - new / 2) + token) * new, least)
    queue = (attention / 2 * waiting / maximum(turns - decoding, 1.0) + token) * waiting
    lacking = maximum(prompt - holds, 0.0)
    ttft = queue + prefill
    if has_home:
        pulled = maximum(lacking - new, 0.0)
        ttft = ttft + pulls * (pulled > 0.0) * (move_s + move_token_s * pulled)
    ttft_away = ttft + (move_s + move_token_s * prompt)
    wait, log_ttft = log(ttft / alone_s + 0.05), log(ttft + 0.01)
    wait_away, log_ttft_away = log(ttft_away / alone_s + 0.05), log(ttft_away + 0.01)
    wait_to_home, log_ttft_to_home = wait_away, log_ttft_away
    if has_home:
        ttft_to_home = ttft + (move_s + move_token_s * new)
        wait_to_home = log(ttft_to_home / alone_s + 0.05)
        log_ttft_to_home = log(ttft_to_home + 0.01)

    held = known * capacity
    read = of.minimum(decoding / maximum(pinned, 1.0), 1.0) * kv_token * held
    own = kv_token * prompt + sequence + step
    kv = (held + lacking) / capacity
    prompts = log1p(queue)
    return (
        log1p(turns),
        prompts,
        log1p(ttft_seen),
        log1p(decoding * 10.0 * prefill),
        log1p(lacking),
        log((sequence * decoding + read + own) / own),
        log((waiting + (new + 10.0)) * (turns + 1.0)),
        wait,
        wait_away,
        wait_to_home,
        log_ttft,
        log_ttft_away,
        log_ttft_to_home,
        wait * wait,
        wait_away * wait_away,
        wait_to_home * wait_to_home,
        kv,
        maximum(kv - 0.8, 0.0),
        tbt_seen,
        prompts,
        prompts,
    )
