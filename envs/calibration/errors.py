"""How well the laws of a tier hold, phase by phase, on steps they were and were not fitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from conserve_gym.envs.calibration.fit import Laws, holdout_errors_pct
from conserve_gym.envs.calibration.steps import BoolArray, CalibrationError, FloatArray, Steps


class PhaseErrors(NamedTuple):
    """Absolute errors of one phase's steps in percent; all arrays have shape (steps,).

    Attributes:
        phase: prefill, decode or mixed.
        group: What is left out at once: a prompt length, a batch size, a chunk length.
        groups: Group of each step.
        measured_ms: Time of each step.
        predicted_ms: What the laws say.
        in_sample_pct: Errors of the laws that were fitted to all steps.
        left_out_pct: Errors of laws that were fitted without the step's group.
    """

    phase: str
    group: str
    groups: FloatArray
    measured_ms: FloatArray
    predicted_ms: FloatArray
    in_sample_pct: FloatArray
    left_out_pct: FloatArray

    def rows(self) -> Iterator[tuple[str, int | str, int, float, float, float]]:
        """Yield phase, group, steps, both mean errors and the largest left-out one."""
        every = np.ones(len(self.groups), dtype=bool)
        yield self._row("all", every)
        for group in np.unique(self.groups):
            yield self._row(int(group), self.groups == group)

    def _row(
        self, group: int | str, chosen: BoolArray
    ) -> tuple[str, int | str, int, float, float, float]:
        left_out = self.left_out_pct[chosen]
        return (
            self.phase,
            group,
            int(chosen.sum()),
            float(self.in_sample_pct[chosen].mean()),
            float(left_out.mean()),
            float(left_out.max()),
        )


def by_phase(steps: Steps, laws: Laws, advance: Callable[[], None]) -> list[PhaseErrors]:
    """Return the errors of every phase that has steps.

    Args:
        steps: Measured steps.
        laws: What was fitted to them.
        advance: Called after each phase.

    Raises:
        CalibrationError: Without one of the groups there is too little left to fit.
    """
    predicted = laws.step_ms(steps)
    found = []
    for phase, group, groups, judged in (
        ("prefill", "prompt length", steps.prompt_tokens, steps.sequences == 0),
        ("decode", "batch size", steps.sequences, steps.prompt_tokens == 0),
        (
            "mixed",
            "chunk length",
            steps.prompt_tokens,
            (steps.prompt_tokens > 0) & (steps.sequences > 0),
        ),
    ):
        if not judged.any():
            continue
        try:
            left_out = holdout_errors_pct(steps, groups, judged, like=laws)
        except CalibrationError as error:
            raise CalibrationError(f"with one {group} left out, {error}") from None
        # They come by group, and within a group in the order of the steps.
        order = np.argsort(groups[judged], kind="stable")
        measured, says = steps.ms[judged][order], predicted[judged][order]
        found.append(
            PhaseErrors(
                phase,
                group,
                groups[judged][order],
                measured,
                says,
                100.0 * np.abs(says / measured - 1.0),
                left_out,
            )
        )
        advance()
    return found
