"""Turns at their recorded times."""

from __future__ import annotations

import math

from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT
from conserve_gym.envs.workloads.changes.transform import Transform
from conserve_gym.envs.workloads.conversation import Recording, WorkloadError


@dataclass(frozen=True, config=STRICT)
class OpenLoop(Transform):
    """Lets every turn come when it was recorded, whatever the cluster does.

    A turn that is due while the one before it still runs comes when that has ended. Gaps no longer
    count. Without it turns come in a closed loop, their gap after the end of the one before.
    """

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return "open loop (turns at their recorded times, or at the end of the one before)"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return recordings with fixed times.

        Raises:
            WorkloadError: The time of a turn is not known, or falls.
        """
        return [self._fixed(recording) for recording in recordings]

    @staticmethod
    def _fixed(recording: Recording) -> Recording:
        fixed, before_s = [], 0.0
        for i, turn in enumerate(recording.turns):
            sent_s = turn.sent_s if i else 0.0
            if not before_s <= sent_s < math.inf:
                why = f"below {before_s:g} s of the turn before it"
                raise WorkloadError(
                    f"open_loop: conversation {recording.identifier!r}, turn {i}: recorded time "
                    f"sent_s={sent_s:g} is {'not known' if math.isnan(sent_s) else why}"
                )
            fixed.append(turn._replace(gap_s=0.0, not_before_s=sent_s))
            before_s = sent_s
        return recording._replace(turns=tuple(fixed))
