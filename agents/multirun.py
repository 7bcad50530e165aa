"""Several jobs from one command line (Hydra's --multirun): a folder each, and one table of all."""

from __future__ import annotations

import csv
import json
import multiprocessing
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from conserve_gym.agents.follow_parent import follow_parent
from conserve_gym.files import whole

JOB, JOBS = "job.json", "jobs.csv"


class Jobs(Callback):
    """Gives every job a folder inside the command's, and shows in the end what all came to.

    A job's folder is called by what differs between the jobs (``agent_dqn+seed_1``), so that the
    same command finds it again, and so does one that has more jobs.

    Args:
        key: Key of the command's folder.
    """

    def __init__(self, key: str) -> None:
        """Take the key."""
        self._key = key

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Point every job to its folder, whatever launches it and wherever it runs."""
        parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        if any(o.key_or_group == self._key and o.is_sweep_override() for o in parsed):
            print(
                f"error: {self._key} names the folder of all jobs; each gets one of its own in it",
                file=sys.stderr,
            )
            sys.exit(2)
        folder = Path(str(config[self._key])).absolute()
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra += [
            f"hydra.sweep.dir={_quoted(str(folder))}",
            "hydra.sweep.subdir=${hydra.job.override_dirname}",
            "hydra.job.config.override_dirname.kv_sep=_",  # Hydra's lists take it, and no =
            "hydra.job.config.override_dirname.item_sep=+",
            f"hydra.job.config.override_dirname.exclude_keys={_same_in_all(parsed, self._key)}",
        ]

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Show and write what the folder's jobs told; exits with 2 if one of them failed."""
        folder = Path(config.hydra.sweep.dir)
        told = told_by_jobs(folder)
        _write(folder / JOBS, told)
        console = Console()
        console.print(_table(folder, told))
        console.print(str(folder / JOBS), soft_wrap=True)
        if any("error" in one for one in told.values()):
            sys.exit(2)


def is_job() -> bool:
    """Return whether this is a job of a multirun that has a folder from here."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return False
    return "jobs" in (HydraConfig.get().callbacks or {})


def begin(config: DictConfig) -> None:
    """Give a job its folder, and forget what it told when it ran before."""
    follow_parent()
    if multiprocessing.get_start_method() == "loky":  # joblib's; a job's own workers do not know it
        multiprocessing.set_start_method("spawn", force=True)
    config[HydraConfig.get().callbacks["jobs"].key] = str(_folder())
    (_folder() / JOB).unlink(missing_ok=True)


def tell(result: Mapping[str, object]) -> None:
    """Write down what a job came to, a column of the table each."""
    with whole(_folder() / JOB) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def command() -> list[str]:
    """Return the command line; in a job, the one that would run it alone."""
    if not is_job():
        return sys.argv
    hydra, key = HydraConfig.get(), HydraConfig.get().callbacks["jobs"].key
    own = [one for one in hydra.overrides.task if not one.startswith(f"{key}=")]
    return [f"scripts/{hydra.job.config_name}.py", *own, f"{key}={_folder()}"]


def _folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def told_by_jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the jobs in a folder told, by what they are called."""
    return {
        path.parent.relative_to(folder).as_posix(): json.loads(path.read_text("utf-8"))
        for path in sorted(folder.rglob(JOB))
    }


def _same_in_all(parsed: list[Override], key: str) -> str:
    """Return Hydra's list of the keys that do not differ between jobs."""
    same = {o.key_or_group for o in parsed if not o.is_sweep_override()}
    return f"[{','.join(_quoted(one) for one in sorted(same | {key}))}]"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"  # Hydra takes other backslashes as they are


def _columns(told: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for one in told.values() for name in one))


def _write(path: Path, told: Mapping[str, Mapping[str, Any]]) -> None:
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["job", *_columns(told)])
        writer.writeheader()
        writer.writerows({"job": name, **one} for name, one in told.items())


def _table(folder: Path, told: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(title=str(folder))
    table.add_column("job", overflow="fold")
    for name in _columns(told):
        table.add_column(name, justify="right", overflow="fold")
    for name, one in told.items():
        table.add_row(name, *(_shown(one.get(column, "")) for column in _columns(told)))
    return table


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
