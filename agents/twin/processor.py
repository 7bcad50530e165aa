"""What processes had of the processor, as Linux tells."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Processor(NamedTuple):
    """Time of all threads of some processes since they began; NaN where the system does not tell.

    Attributes:
        ran_s: On a processor.
        waited_s: Ready to run, while others had it.
    """

    ran_s: float
    waited_s: float

    def __sub__(self, earlier: Processor) -> Processor:
        """Return the time since an earlier reading."""
        return Processor(self.ran_s - earlier.ran_s, self.waited_s - earlier.waited_s)

    @property
    def waited_pct(self) -> float:
        """Waiting as a share of running and waiting; NaN without either."""
        both = self.ran_s + self.waited_s
        return 100.0 * self.waited_s / both if both else float("nan")


def read(processes: Sequence[int]) -> Processor:
    """Return what processes have had so far."""
    ran = waited = 0.0
    try:
        for process in processes:
            for thread in os.scandir(f"/proc/{process}/task"):
                times = (Path(thread.path) / "schedstat").read_text().split()
                ran += 1e-9 * int(times[0])
                waited += 1e-9 * int(times[1])
    except OSError:
        return Processor(float("nan"), float("nan"))
    return Processor(ran, waited)
