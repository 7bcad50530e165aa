"""Plays cells on all cores, and keeps what has been played."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from conserve_gym.agents.follow_parent import follow_parent
from conserve_gym.agents.provenance import git_revision, write_json
from conserve_gym.envs.configuration import ConfigurationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RESULTS, SETTINGS = "cells.jsonl", "settings.json"

C = TypeVar("C", bound="DataclassInstance")
Result = dict[str, Any]


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write down what the cells of a folder depend on beside themselves, and on which revision.

    Settings that the folder knows and that are not named now are kept.

    Raises:
        ConfigurationError: The folder holds results of other settings or of another revision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = {**settings, "revision": git_revision()}
    path = folder / SETTINGS
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    differing = sorted(key for key in now.keys() & found.keys() if now[key] != found[key])
    if differing:
        raise ConfigurationError(
            f"output={folder} holds results with another {', '.join(differing)}; "
            "choose another folder"
        )
    write_json(path, found | now)


def load(folder: Path, kind: type[C]) -> dict[C, Result]:
    """Return what a folder's cells came to; a line that was cut off is taken out of the file."""
    path = folder / RESULTS
    results: dict[C, Result] = {}
    if path.exists():
        whole, end, rest = path.read_bytes().rpartition(b"\n")
        if rest:  # stopped while it wrote
            path.write_bytes(whole + end)
        for line in whole.splitlines():
            entry = json.loads(line)
            results[kind(**entry["cell"])] = entry["metrics"]
    return results


def play(
    jobs: Mapping[C, Callable[[], Result]],
    folder: Path,
    results: dict[C, Result],
    workers: int | None,
    console: Console,
) -> None:
    """Play the cells that have no result yet, and add theirs to the folder and to ``results``.

    Args:
        jobs: What plays each cell, in the order in which they begin; it goes to other processes.
        folder: Claimed before.
        results: As from ``load``.
        workers: Processes; None takes one a core.
        console: Where progress is shown.
    """
    missing = [cell for cell in jobs if cell not in results]
    if not missing:
        return
    progress = Progress(
        TextColumn("playing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    pool = processes(min(workers or os.cpu_count() or 1, len(missing)))
    with (folder / RESULTS).open("a", encoding="utf-8") as file, progress:
        task = progress.add_task("playing", total=len(missing))
        try:
            waiting = {pool.submit(jobs[cell]): cell for cell in missing}
            for done in as_completed(waiting):
                cell = waiting[done]
                results[cell] = done.result()
                file.write(json.dumps({"cell": asdict(cell), "metrics": results[cell]}) + "\n")
                file.flush()
                progress.advance(task)
        finally:
            pool.shutdown(cancel_futures=True)


def processes(number: int) -> ProcessPoolExecutor:
    """Return a pool of processes that end with this one."""
    return ProcessPoolExecutor(
        number, mp_context=multiprocessing.get_context("spawn"), initializer=follow_parent
    )
