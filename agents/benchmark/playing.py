"""Plays a benchmark: the grid of loads, then the search for each policy's capacity."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from conserve_gym.agents import campaign
from conserve_gym.agents.benchmark.capacity import Search, most_probes
from conserve_gym.agents.benchmark.cells import (
    Cell,
    Result,
    digest,
    failure,
    scenario_of,
    score,
)
from conserve_gym.agents.benchmark.competitors import Competitor, check_somebody_plays, competitors
from conserve_gym.agents.benchmark.spec import BenchmarkSpec
from conserve_gym.agents.provenance import write_json
from conserve_gym.envs.configuration import ConfigurationError, Scenario, compose_scenario

SCENARIOS = "scenarios.json"

Place = tuple[str, str, str]
"""Cluster, workload and policy."""


@dataclass
class Played:
    """What a benchmark came to.

    Attributes:
        spec: What was asked for.
        competitors: Who played, in the order asked for.
        results: All cells of the grid and of the search for capacity.
        searches: Capacity by cluster, workload and policy key; empty where it is left out.
        scenarios: One by cluster and workload, for names and caveats.
    """

    spec: BenchmarkSpec
    competitors: list[Competitor]
    results: dict[Cell, Result]
    searches: dict[Place, Search]
    scenarios: dict[tuple[str, str], Scenario]


class Benchmark:
    """A benchmark while it is played.

    Args:
        spec: What to play.
        console: Where estimate and progress are shown.

    Raises:
        ConfigurationError: A setting or a policy cannot be used, or the folder holds other results.
    """

    def __init__(self, spec: BenchmarkSpec, console: Console) -> None:
        """Check everything before anything is played, and take the folder."""
        self._spec = spec
        self._console = console
        self._settings = {
            (cluster, workload): _settings(spec, cluster, workload)
            for cluster in spec.clusters
            for workload in spec.played
        }
        self._scenarios = {
            key: scenario_of(json.dumps(settings, sort_keys=True))
            for key, settings in self._settings.items()
        }
        clusters = {cluster: one.cluster for (cluster, _), one in self._scenarios.items()}
        self._competitors = {one.key: one for one in competitors(spec.asked, clusters)}
        campaign.claim(spec.output, self._claimed())
        stored = campaign.load(spec.output, Cell)
        self._results = {cell: one for cell, one in stored.items() if failure(one) is None}

    def play(self) -> Played:
        """Play all that the folder does not have yet.

        Raises:
            ConfigurationError: The submission fails, or everybody does.
        """
        grid = [
            cell
            for (cluster, workload), key in product(self._settings, self._competitors)
            for rate in self._spec.played[workload].rates
            for cell in self._cells(cluster, workload, key, rate)
        ]
        self._announce(grid)
        self._play(grid)
        check_somebody_plays(self._competitors.values(), self._spec.clusters)
        searches = self._search() if self._spec.capacity_tolerance else {}
        check_somebody_plays(self._competitors.values(), self._spec.clusters)
        used = dict.fromkeys(grid)
        for place, search in searches.items():
            for rate in search.attained:
                used.update(dict.fromkeys(self._cells(*place, rate)))
        return Played(
            self._spec,
            list(self._competitors.values()),
            {cell: self._results[cell] for cell in used if self._plays(cell.cluster, cell.policy)},
            searches,
            self._scenarios,
        )

    def _claimed(self) -> dict[str, str]:
        """Return a digest of each cluster and workload, whatever their loads."""
        claimed = {}
        for (cluster, workload), settings in self._settings.items():
            arrivals = {key: one for key, one in settings["arrivals"].items() if key != "rate"}
            claimed[f"clusters.{cluster}"] = digest(json.dumps(settings["cluster"]))
            claimed[f"workloads.{workload}"] = digest(json.dumps([settings["workload"], arrivals]))
        return claimed

    def _plays(self, cluster: str, key: str) -> bool:
        return cluster not in self._competitors[key].left_out

    def _cells(self, cluster: str, workload: str, key: str, rate: float) -> list[Cell]:
        if not self._plays(cluster, key):
            return []
        version = self._competitors[key].version
        return [Cell(cluster, workload, rate, key, version, seed) for seed in self._spec.test_seeds]

    def _announce(self, grid: list[Cell]) -> None:
        """Play one cell of each policy and workload, and say how long the others will take."""
        missing = [cell for cell in grid if cell not in self._results]
        says = f"{len(grid):,} cells, of which {len(grid) - len(missing):,} are stored"
        self._console.print(says, soft_wrap=True)
        if not missing:
            return
        known = {_kind(cell) for cell in self._results}
        unknown: dict[tuple[str, str], list[Cell]] = {}
        for cell in missing:
            if _kind(cell) not in known:
                unknown.setdefault(_kind(cell), []).append(cell)
        self._play(cells[len(cells) // 2] for cells in unknown.values())  # of a medium load
        taken: dict[tuple[str, str], list[float]] = {}
        for cell, one in self._results.items():
            taken.setdefault(_kind(cell), []).append(one["timing"]["seconds"])
        means = {kind: fmean(seconds) for kind, seconds in taken.items()}
        left = [cell for cell in missing if cell not in self._results]
        workers = min(self._spec.workers or os.cpu_count() or 1, max(len(left), 1))
        seconds = sum(means.get(_kind(cell), 0.0) for cell in left) / workers
        says = f"{len(left):,} are left: about {_duration(seconds)} with {workers} workers"
        if tolerance := self._spec.capacity_tolerance:
            rates = {name: one.rates for name, one in self._spec.played.items()}
            more = {name: most_probes(one, tolerance) / len(one) for name, one in rates.items()}
            seconds = sum(more[cell.workload] * means.get(_kind(cell), 0.0) for cell in missing)
            says += f", then up to {_duration(seconds / workers)} for capacity"
        self._console.print(f"{says}. Stopped, it goes on when it is started again", soft_wrap=True)

    def _play(self, cells: Iterable[Cell]) -> None:
        """Play cells; a policy that fails takes no further part on that cluster."""
        jobs = {}
        texts = {}
        for cell in cells:
            settings = self._settings[cell.cluster, cell.workload]
            arrivals = {**settings["arrivals"], "rate": cell.rate}
            text = json.dumps({**settings, "arrivals": arrivals}, sort_keys=True)
            texts[digest(text)] = text
            asked = self._competitors[cell.policy].asked
            if self._plays(cell.cluster, cell.policy):
                jobs[cell] = partial(score, text, asked, cell.version, cell.seed)
        path = self._spec.output / SCENARIOS
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        if texts.keys() - known.keys():
            write_json(path, known | texts)
        campaign.play(jobs, self._spec.output, self._results, self._spec.workers, self._console)
        for cell in jobs:
            if failed := failure(self._results[cell]):
                self._leave_out(cell, failed)
                del self._results[cell]

    def _leave_out(self, cell: Cell, failed: str) -> None:
        one = self._competitors[cell.policy]
        says = (
            f"policy {one.name!r} fails on {cell.cluster}, {cell.workload}, "
            f"{cell.rate:g} conversations/s, seed {cell.seed}: {failed}"
        )
        if one.asked == self._spec.submission:
            raise ConfigurationError(says)
        one.left_out.setdefault(cell.cluster, says)

    def _search(self) -> dict[Place, Search]:
        """Look for every policy's capacity, all of them at once, a rate a round.

        Bounds have none: each of their episodes costs many.
        """
        tolerance = self._spec.capacity_tolerance or 0.0
        searches = {
            (cluster, workload, key): Search(
                {
                    rate: self._attained(cluster, workload, key, rate)
                    for rate in self._spec.played[workload].rates
                },
                tolerance,
            )
            for (cluster, workload), key in product(self._settings, self._competitors)
            if self._plays(cluster, key) and not self._competitors[key].is_bound
        }
        while probes := {
            place: rate
            for place, search in searches.items()
            if (rate := search.next_rate) is not None
        }:
            self._play(cell for place, rate in probes.items() for cell in self._cells(*place, rate))
            for place, rate in probes.items():
                if not self._plays(place[0], place[2]):
                    del searches[place]
                    continue
                attained = {**searches[place].attained, rate: self._attained(*place, rate)}
                searches[place] = Search(attained, tolerance)
        return searches

    def _attained(self, cluster: str, workload: str, key: str, rate: float) -> float:
        cells = self._cells(cluster, workload, key, rate)
        return fmean(self._results[cell]["metrics"]["slo_attainment_pct"] for cell in cells)


def _settings(spec: BenchmarkSpec, cluster: str, workload: str) -> dict[str, Any]:
    """Return a scenario's whole configuration at the workload's first load."""
    one = spec.played[workload]
    named = any(override.startswith("arrivals=") for override in one.overrides)
    overrides = (
        f"cluster={cluster}",
        *([] if named else [f"arrivals={spec.arrivals}"]),
        *one.overrides,
        f"arrivals.rate={one.rates[0]}",
    )
    try:
        composed = compose_scenario(overrides)
    except ConfigurationError as error:
        raise ConfigurationError(f"clusters={cluster}, workloads.{workload}: {error}") from error
    settings: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    return settings


def _kind(cell: Cell) -> tuple[str, str]:
    return cell.policy, cell.workload


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
