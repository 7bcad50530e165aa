"""A training run on disk: a folder that says what it is, and keeps models whole.

``config.yaml`` has the settings, ``run.json`` command, seeds, revision, versions and caveats of the
start and of every resumption, ``checkpoints/`` the newest states, and ``model.zip`` appears when
the run is complete.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from conserve_gym.agents.provenance import provenance, write_json
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.files import whole
from conserve_gym.observation import field_table

MODEL, CONFIG, RUN, LOCK = "model.zip", "config.yaml", "run.json", ".lock"
KEPT_CHECKPOINTS = 2


def settings(config: DictConfig) -> dict[str, Any]:
    """Return what makes a run this run: everything but where it is kept and how it is shown."""
    values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    return {key: values[key] for key in values if key not in ("run", "progress_bar")}


def check_same(folder: Path, expected: dict[str, Any]) -> None:
    """Check that the folder holds the run with these settings, or none.

    Raises:
        ConfigurationError: It holds another run; the message names the keys that differ.
    """
    if not (folder / CONFIG).exists():
        return
    found = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder / CONFIG)))
    differing = sorted(
        key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)
    )
    if differing:
        raise ConfigurationError(
            f"run={folder} holds a run with other settings ({', '.join(differing)}); "
            "choose another folder"
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder; a process that is killed lets go of it.

    Raises:
        ConfigurationError: Another process trains in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise ConfigurationError(f"run={folder}: another process trains in it") from None


def claim(
    folder: Path,
    values: dict[str, Any],
    cluster: ClusterSpec,
    *,
    steps_done: int,
    episode_seed: int,
) -> None:
    """Write down what the run is, or that it goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = json.loads((folder / RUN).read_text("utf-8")) if (folder / RUN).exists() else []
    part = {"steps_done": steps_done, "episode_seed": episode_seed, **provenance(cluster)}
    write_json(folder / RUN, [*parts, part])
    with whole(folder / CONFIG) as partial:
        OmegaConf.save(OmegaConf.create(values), partial)


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run, if it has one."""
    return max(folder.glob("checkpoints/*.zip"), key=lambda path: int(path.stem), default=None)


def save_model(model: Any, path: Path) -> None:
    """Save a model with its observation table; the file appears whole or not at all."""
    model.observation_table = field_table()
    # Given a name instead of a file, Stable-Baselines3 would append .zip.
    with whole(path) as partial, partial.open("wb") as file:
        model.save(file)


def save_checkpoint(model: Any, folder: Path) -> None:
    """Save a state of the model, and delete all but the newest ``KEPT_CHECKPOINTS``."""
    save_model(model, folder / f"{model.num_timesteps}.zip")
    kept = sorted(folder.glob("*.zip"), key=lambda path: int(path.stem))
    for path in kept[:-KEPT_CHECKPOINTS]:
        path.unlink()


def load_model(algorithm: Any, path: Path) -> Any:
    """Load a model.

    Raises:
        ConfigurationError: The file is not a whole model, or one of another observation table.
    """
    try:
        model: Any = algorithm.load(path, device="cpu")
    # Stable-Baselines3 asserts that the archive holds data.
    except (ValueError, KeyError, EOFError, OSError, AssertionError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{path}: not a whole model ({error})") from None
    theirs = getattr(model, "observation_table", [])
    for index, mine in enumerate(field_table()):
        if index >= len(theirs) or theirs[index] != mine:
            raise ConfigurationError(
                f"{path}: observation field {index} ({mine['group']}.{mine['name']}) differs from "
                "this version's: the model belongs to another observation table"
            )
    return model
