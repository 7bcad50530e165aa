"""The law of KV moves from what a slot's saving and restoring took."""

from __future__ import annotations

import pytest

from conserve_gym.envs.calibration.moves import Move, fit
from conserve_gym.envs.calibration.steps import CalibrationError


def test_the_law_that_made_the_moves_is_found() -> None:
    moves = [
        Move(n, 3000 * n, 1.0 + 3e-3 * n + odd, 1.0 + 1e-3 * n)
        for n in (64, 512, 2048)
        for odd in (0.0, 0.0, 40.0)  # somebody else had the processor
    ]
    link = fit(moves)
    assert link.latency_ms == pytest.approx(2.0)
    assert link.gb_per_s == pytest.approx(3000 / 4e-3 * 1e3 / 1e9)
    assert link.stops_engines


def test_sizes_that_take_alike_are_a_constant() -> None:
    link = fit([Move(n, 3000 * n, 1.0, 1.0) for n in (2048, 64)])
    assert link.exposed_s(3000 * 2048) == pytest.approx(2e-3, rel=1e-2)


def test_one_size_is_no_law() -> None:
    with pytest.raises(CalibrationError, match="two sizes"):
        fit([Move(64, 1000, 1.0, 1.0)])
