"""Recordings of two files, mixed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, NonNegativeInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT
from conserve_gym.envs.workloads.changes.choices import drawn
from conserve_gym.envs.workloads.changes.transform import Transform
from conserve_gym.envs.workloads.conversation import Recording, WorkloadError
from conserve_gym.envs.workloads.readers.registry import open_recordings


@dataclass(frozen=True, config=STRICT)
class Mix(Transform):
    """Mixes the conversations with those of another file, as many as there are for the shares.

    Those with known arrivals come in their order, each file from its own start; else the order is
    drawn.

    Attributes:
        path: The other file.
        share: Its share of the conversations.
        format: Its format.
        seed: Of the draw and the order.
    """

    path: Path
    share: Annotated[float, Field(gt=0.0, lt=1.0)]
    format: str = "auto"
    seed: NonNegativeInt = 0

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"mixed with {self.share:.4g} of {self.path.name} (seed {self.seed})"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return a mixture of both.

        Raises:
            WorkloadError: The other file cannot be read, or one of them has too few.
        """
        return self.of(recordings, list(open_recordings(self.path, self.format)[1]))

    def of(self, recordings: list[Recording], others: list[Recording]) -> list[Recording]:
        """Return a mixture with other recordings."""
        total = min(len(recordings) / (1.0 - self.share), len(others) / self.share)
        counts = round(total * (1.0 - self.share)), round(total * self.share)
        if not all(counts):
            raise WorkloadError(
                f"mix.share={self.share:g}: {len(recordings):,} and {len(others):,} conversations "
                "are too few for one of each"
            )
        rng = np.random.default_rng(self.seed)
        mixed = [
            recording
            for part, count in zip((recordings, others), counts, strict=True)
            for recording in _from_start(drawn(part, count, rng))
        ]
        if not any(math.isnan(recording.arrival_s) for recording in mixed):
            return sorted(mixed, key=lambda recording: recording.arrival_s)
        return [mixed[i] for i in rng.permutation(len(mixed))]


def _from_start(recordings: list[Recording]) -> list[Recording]:
    start_s = min(recording.arrival_s for recording in recordings)
    return [r._replace(arrival_s=r.arrival_s - start_s) for r in recordings]
