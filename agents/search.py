"""What searches by Optuna share: a study on disk that goes on, what there is to draw, a table."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conserve_gym.baselines.baseline import Parameter
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.files import whole

_STUDY, _TRIALS = "study.log", "trials.csv"


def optuna() -> Any:
    """Return the module, which is an extra.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        import optuna as module
    except ImportError:
        raise ConfigurationError("tuning needs Optuna: pip install 'conserve-gym[tune]'") from None
    module.logging.set_verbosity(module.logging.ERROR)
    return module


def open_study(folder: Path, name: str) -> Any:
    """Return the study of a folder, which is begun there if there is none."""
    storages = optuna().storages
    backend = storages.journal.JournalFileBackend(str(folder / _STUDY))
    return optuna().create_study(
        direction="maximize",
        study_name=name,
        storage=storages.JournalStorage(backend),
        load_if_exists=True,
    )


def distributions(parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return what each parameter is drawn from."""
    return {name: _distribution(parameter) for name, parameter in parameters.items()}


def _distribution(parameter: Parameter) -> Any:
    known = optuna().distributions
    if parameter.choices:
        return known.CategoricalDistribution(parameter.choices)
    if isinstance(parameter.default, int):
        return known.IntDistribution(
            int(parameter.low), int(parameter.high), log=parameter.logarithmic
        )
    return known.FloatDistribution(parameter.low, parameter.high, log=parameter.logarithmic)


def complete(study: Any) -> list[Any]:
    """Return the trials that have a value."""
    return [trial for trial in study.trials if trial.value is not None]


def write_trials(folder: Path, study: Any, names: Sequence[str], value: str) -> Path:
    """Write a row a trial; the file appears whole or not at all."""
    path = folder / _TRIALS
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", *names, value])
        for trial in complete(study):
            writer.writerow([trial.number, *(trial.params[name] for name in names), trial.value])
    return path
