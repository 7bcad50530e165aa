"""Fits the laws of a tier to measured steps.

Errors are relative, so that a step of 3 ms counts as much as one of 3 s, and large ones count
linearly (soft L1 above 5 %), so that a few odd cells do not bend the law.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, fields, replace
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.optimize import least_squares

from conserve_gym.envs.calibration.laws import step_ms
from conserve_gym.envs.calibration.steps import BoolArray, CalibrationError, FloatArray, Steps
from conserve_gym.envs.serving.hardware import DecodeLaw, MixedLaw, PrefillLaw

Law = TypeVar("Law", PrefillLaw, DecodeLaw, MixedLaw)

_LINEAR_FROM = 0.05
# What a second regime of decodes must lower the cost to, for the two parameters that it brings.
_EARNED = 0.7
# No step takes no time, however well that fits those that were measured.
_SHORTEST_MS = 1e-3

# FlashAttention 2 works on 64 queries at once; fitted to measured mixed steps it is 63.6.
TILE = MixedLaw(64.0)
_NO_PREFILL = PrefillLaw(0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
_NO_DECODE = DecodeLaw(0.0, 0.0, 1.0, 0.0, 0.0)


class Laws(NamedTuple):
    """The step law of a tier."""

    prefill: PrefillLaw
    decode: DecodeLaw
    mixed: MixedLaw

    def step_ms(self, steps: Steps) -> FloatArray:
        """Return the time of every step in milliseconds."""
        return step_ms(steps, self.prefill, self.decode, self.mixed)


def fit(
    steps: Steps, scan_us: float | None = None, like: Laws | None = None, tile_from: int = 0
) -> Laws:
    """Fit the laws to a table that has steps of prompts and of decodes, and mixed ones or none.

    Args:
        steps: Measured steps.
        scan_us: Scan of a context token where it is known from elsewhere; None fits it, or leaves
            it 0 where no prompt has a context or mixed steps are told better without.
        like: Laws of the same form, to fit again without some of the steps: what is 0 in them
            stays 0.
        tile_from: Tokens from which a chunk is computed in tiles.

    Raises:
        CalibrationError: There are too few different steps.
    """
    prompts, decodes, mixed = steps.of_prompts, steps.of_decodes, steps.mixed
    _need(prompts.prompt_tokens, "prompts of {} lengths")
    _need(decodes.kv_tokens, "decodes that read {} different numbers of KV tokens")
    fitted = [_fit_prefill(prompts, scan_us, like.prefill if like else None, tile_from)]
    decode = _fit_decode(decodes, like.decode if like else None)
    if not len(mixed):
        return Laws(fitted[0][1], decode, TILE)
    if scan_us is None and not like:
        # Decodes in a mixed step scan too: a scan that only makes up for odd prompts shows there.
        fitted.append(_fit_prefill(prompts, 0.0, None, tile_from))
    found = []
    for cost, prefill in fitted:

        def predicted(law: MixedLaw, prefill: PrefillLaw = prefill) -> FloatArray:
            return step_ms(mixed, prefill, decode, law)

        mixed_cost, tile = _search(mixed, TILE, predicted)
        found.append((cost + mixed_cost, Laws(prefill, decode, tile)))
    return min(found, key=lambda pair: pair[0])[1]


def _fit_prefill(
    steps: Steps, scan_us: float | None, like: PrefillLaw | None, tile_from: int
) -> tuple[float, PrefillLaw]:
    def predicted(law: PrefillLaw) -> FloatArray:
        return step_ms(steps, law, _NO_DECODE, TILE)

    def search(start: PrefillLaw) -> tuple[float, PrefillLaw]:
        fixed = ["tile_from"]
        if scan_us is not None:
            fixed.append("scan_us")
        if not start.tile_from:
            fixed.append("untiled")
        return _search(steps, start, predicted, fixed)

    if like:
        return search(like)
    shortest, longest = float(steps.ms.min()), float(steps.ms.max())
    most = float(steps.prompt_tokens.max())
    token, attention = longest / most / 2 * 1e3, longest / most**2 / 2 * 1e6
    scan = scan_us
    if scan is None:
        scan = 0.5 if steps.context_tokens.any() else 0.0
    # The work of a few tokens hides behind either reading the weights or launching kernels.
    starts = (
        PrefillLaw(0.0, shortest * 0.4, shortest * 0.6, token, attention, scan, 1.0, tile_from),
        PrefillLaw(shortest, shortest * 0.4, 0.0, token, attention, scan, 1.0, tile_from),
    )
    return min(map(search, starts), key=lambda pair: pair[0])


def _fit_decode(steps: Steps, like: DecodeLaw | None) -> DecodeLaw:
    def predicted(law: DecodeLaw) -> FloatArray:
        return step_ms(steps, _NO_PREFILL, law, TILE)

    if like:
        return _search(steps, like, predicted)[1]
    shortest = float(steps.ms.min())
    kv = float((steps.ms.max() - shortest) / max(steps.kv_tokens.max(), 1.0)) * 1e3
    cost, linear = _search(steps, DecodeLaw(0.0, 0.0, shortest, 10.0, kv), predicted)
    found = (
        _search(steps, DecodeLaw(shortest, 5.0, shortest * share, 10.0, kv), predicted)
        for share in (0.5, 0.9)
    )
    cost_with_floor, with_floor = min(found, key=lambda pair: pair[0])
    return with_floor if cost_with_floor < _EARNED * cost else linear


def holdout_errors_pct(
    steps: Steps,
    groups: FloatArray,
    judged: BoolArray,
    scan_us: float | None = None,
    like: Laws | None = None,
) -> FloatArray:
    """Return absolute errors in percent of steps whose group was left out of the fit.

    Args:
        steps: Measured steps.
        groups: Group of each step, shape (steps,); each that has judged steps is left out once.
        judged: Which steps are judged, shape (steps,).
        scan_us: As for ``fit``.
        like: Laws that were fitted to all of them; None fits them.

    Returns:
        One error for each judged step, by group.
    """
    whole = like or fit(steps, scan_us)
    errors = []
    for group in np.unique(groups[judged]):
        left_out = judged & (groups == group)
        # Only steps of the kind that is judged are left out: the others belong to other laws.
        laws = fit(steps.where(~left_out), scan_us, like=whole)
        rest = steps.where(left_out)
        errors.append(100.0 * np.abs(laws.step_ms(rest) / rest.ms - 1.0))
    return np.concatenate(errors)


def _search(
    steps: Steps,
    start: Law,
    predicted: Callable[[Law], FloatArray],
    fixed: Sequence[str] = (),
) -> tuple[float, Law]:
    """Return the least cost from a start on, and its law; coefficients that start at 0 stay 0."""
    values = np.array(astuple(start))
    free = values > 0.0
    free &= [field.name not in fixed for field in fields(start)]

    def law(x: FloatArray) -> Law:
        filled = values.copy()
        filled[free] *= x
        return type(start)(*filled.tolist())

    found = least_squares(
        lambda x: predicted(law(x)) / steps.ms - 1.0,
        np.ones(free.sum()),
        bounds=(0.0, np.inf),
        loss="soft_l1",
        f_scale=_LINEAR_FROM,
    )
    fitted = law(found.x)
    if not isinstance(fitted, MixedLaw):
        fitted = replace(fitted, base_ms=max(fitted.base_ms, _SHORTEST_MS))
    return float(found.cost), fitted


def _need(values: FloatArray, what: str) -> None:
    found = len(np.unique(values))
    if found < 4:
        raise CalibrationError(f"there are {what.format(found)}; at least 4 are needed")
