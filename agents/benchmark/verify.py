"""Plays rows of a finished benchmark again, and compares them to the last digit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console

from conserve_gym.agents.benchmark import results
from conserve_gym.agents.benchmark.cells import asked_of, digest, failure, made_by, score
from conserve_gym.agents.benchmark.competitors import version_of
from conserve_gym.agents.benchmark.playing import SCENARIOS
from conserve_gym.envs.configuration import ConfigurationError


class Verdict(NamedTuple):
    """What became of one row.

    Attributes:
        row: Which one.
        figures: How many figures were compared.
        differing: What differs, with both values.
        other_code: Revision and versions that differ from those that the row was made with.
    """

    row: str
    figures: int
    differing: list[str]
    other_code: list[str]


def verify(folder: Path, count: object, console: Console) -> bool:
    """Play rows again and say of each whether it came out the same.

    Args:
        folder: Of a finished benchmark.
        count: How many of its rows, drawn anew each time.
        console: Where it is said.

    Returns:
        Whether all figures are the same.

    Raises:
        ConfigurationError: There is no benchmark in the folder.
    """
    results.pyarrow()
    path = folder / results.RESULTS
    if not path.is_file():
        raise ConfigurationError(f"verify={folder}: no {results.RESULTS}; has it finished?")
    if not isinstance(count, int) or count < 1:
        raise ConfigurationError(f"rows={count!r} must be a whole number of at least 1")
    rows = pd.read_parquet(path)
    texts = json.loads((folder / SCENARIOS).read_text("utf-8"))
    drawn = np.random.default_rng().choice(len(rows), min(count, len(rows)), replace=False)
    same = True
    for index in sorted(drawn):
        verdict = again(rows.iloc[index].to_dict(), texts)
        same &= not verdict.differing
        says = (
            f"differs in {', '.join(verdict.differing)}"
            if verdict.differing
            else f"all {verdict.figures} figures are the same to the last digit"
        )
        if verdict.other_code:
            says += f" (made with other {', '.join(verdict.other_code)})"
        console.print(f"{verdict.row}: {says}", soft_wrap=True, highlight=False, markup=False)
    return same


def again(row: dict[str, Any], texts: dict[str, str]) -> Verdict:
    """Play a stored row again.

    Args:
        row: As from ``results.parquet``.
        texts: Configurations of scenarios by their digest.

    Raises:
        ConfigurationError: Its scenario is missing or was changed, or its policy fails now.
    """
    called = (
        f"{row['policy']} on {row['cluster']}, {row['workload']}, {row['rate']:g} "
        f"conversations/s, seed {row['seed']}"
    )
    text = texts.get(row["scenario_sha256"], "")
    if digest(text) != row["scenario_sha256"]:
        raise ConfigurationError(f"{SCENARIOS} does not have the scenario of {called}")
    asked = asked_of(row["asked"])
    result = score(text, asked, row["version"], int(row["seed"]))
    if failed := failure(result):
        raise ConfigurationError(f"{called}: {failed}")
    differing = [
        f"{name} ({row.get(name)!r}, now {value!r})"
        for name, value in result["metrics"].items()
        if not _same(row.get(name), value)
    ]
    code = [name for name, value in made_by().items() if row.get(name) != value]
    if version_of(asked) != row["version"]:
        code.append("files of the policy")
    return Verdict(called, len(result["metrics"]), differing, code)


def _same(stored: float | None, value: float) -> bool:
    if stored is None:
        return False
    return stored == value or (math.isnan(stored) and math.isnan(value))
