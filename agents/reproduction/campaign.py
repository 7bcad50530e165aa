"""Plays a reproduction's cells, and keeps what has been played."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.console import Console

from conserve_gym.agents import campaign
from conserve_gym.agents.reproduction.cells import Cell, cells, check, play
from conserve_gym.agents.reproduction.spec import ReproductionSpec

Results = dict[Cell, dict[str, float]]


def run(spec: ReproductionSpec, settings: Mapping[str, Any], console: Console) -> Results:
    """Play all cells that the output folder does not have yet.

    Args:
        spec: What to play.
        settings: By key, what a cell's result depends on beside the cell itself.
        console: Where progress is shown.

    Raises:
        ConfigurationError: The folder holds results of other settings or of another revision.
    """
    check(spec)
    campaign.claim(spec.output, settings)
    jobs = {cell: partial(play, spec, cell) for cell in cells(spec)}
    results = campaign.load(spec.output, Cell)
    campaign.play(jobs, spec.output, results, spec.workers, console)
    return {cell: results[cell] for cell in jobs}
