"""Fetches public recordings, shows how far it is, and converts them."""

from __future__ import annotations

import functools
from pathlib import Path

from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from conserve_gym.envs.configuration import ConfigurationError, validated
from conserve_gym.envs.workloads.convert import convert
from conserve_gym.envs.workloads.fetch import SUMS, Original, fetch
from conserve_gym.envs.workloads.readers.registry import open_recordings


def run(config: DictConfig, console: Console) -> None:
    """Fetch what is named; without names, show what there is.

    Raises:
        ConfigurationError: A key or value is not right.
    """
    originals = validated(dict[str, Original], config.originals, "originals")
    if not isinstance(config.convert, bool):
        raise ConfigurationError(f"convert={config.convert!r} must be true or false")
    if config.names is None:
        for name, one in originals.items():
            console.print(f"{name}: {one.says}; {one.licence}\n  {one.address}", soft_wrap=True)
        console.print("names=[...] fetches them, names=all every one")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    for name in _original_names(config.names, list(originals)):
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(name, total=None)
            show = functools.partial(_show_progress, progress, task)
            fetched = fetch(originals[name], Path(str(config.output)).expanduser(), show)
        says = "fetched" if fetched.came else "already here"
        says += ", verified" if fetched.verified else f", its SHA-256 now written down in {SUMS}"
        console.print(f"{name}: {says}\n{fetched.path}", soft_wrap=True)
        if config.convert:
            _convert(fetched.path, console)


def _convert(path: Path, console: Console) -> None:
    """Write a recording as our own csv beside it."""
    target = path.with_name(f"{path.name.partition('.')[0]}.conserve.csv.gz")
    source, recordings = open_recordings(path, on_error="skip")
    written = convert(recordings, target)
    says = f"{written.conversations:,} conversations, {written.turns:,} turns"
    if source.skipped:
        says += f"; {source.skipped:,} with bad rows left out: {source.problems[0]}"
    console.print(f"{target}: {says}", soft_wrap=True)


def _show_progress(progress: Progress, task: TaskID, here: int, total: int | None) -> None:
    progress.update(task, completed=here, total=total)


def _original_names(value: object, known: list[str]) -> list[str]:
    if value == "all":
        return known
    names = [str(name) for name in value] if isinstance(value, ListConfig) else [str(value)]
    for name in names:
        if name not in known:
            raise ConfigurationError(f"names={name} is none of all, {', '.join(known)}")
    return names
