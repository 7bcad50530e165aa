"""Plays cells on all cores, and keeps what has been played."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from conserve_gym.agents.provenance import git_revision, write_json
from conserve_gym.agents.reproduction.cells import Cell, cells, check, play
from conserve_gym.agents.reproduction.spec import ReproductionSpec
from conserve_gym.envs.configuration import ConfigurationError

RESULTS, SETTINGS = "cells.jsonl", "settings.json"

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
    _claim(spec.output, settings)
    path = spec.output / RESULTS
    asked = list(dict.fromkeys(cells(spec)))
    results = _load(path)
    missing = [cell for cell in asked if cell not in results]
    if missing:
        _play(spec, missing, path, results, console)
    return {cell: results[cell] for cell in asked}


def _claim(folder: Path, settings: Mapping[str, Any]) -> None:
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


def _load(path: Path) -> Results:
    results: Results = {}
    if path.exists():
        whole, end, rest = path.read_bytes().rpartition(b"\n")
        if rest:  # stopped while it wrote
            path.write_bytes(whole + end)
        for line in whole.splitlines():
            entry = json.loads(line)
            results[Cell(**entry["cell"])] = entry["metrics"]
    return results


def _play(
    spec: ReproductionSpec, missing: list[Cell], path: Path, results: Results, console: Console
) -> None:
    progress = Progress(
        TextColumn("playing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    workers = min(spec.workers or os.cpu_count() or 1, len(missing))
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_follow_parent
    )
    with path.open("a", encoding="utf-8") as file, progress:
        task = progress.add_task("playing", total=len(missing))
        try:
            waiting = {pool.submit(play, spec, cell): cell for cell in missing}
            for done in as_completed(waiting):
                cell = waiting[done]
                results[cell] = done.result()
                file.write(json.dumps({"cell": asdict(cell), "metrics": results[cell]}) + "\n")
                file.flush()
                progress.advance(task)
        finally:
            pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Let a worker end when its parent does, and not by itself.

    A parent that was killed cannot tell it; and Ctrl-C, which goes to both, could end it while it
    holds a lock that its parent waits for.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
