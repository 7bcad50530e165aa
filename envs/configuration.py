"""From Hydra's configuration to the objects of an episode."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass

from conserve_gym.deployment import Deployment
from conserve_gym.envs.fields import STRICT, NotNegative
from conserve_gym.envs.reward import RewardWeights
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.workloads.arrivals import Arrivals
from conserve_gym.envs.workloads.conversation import WorkloadError
from conserve_gym.envs.workloads.workload import Workload
from conserve_gym.errors import ConServeGymError

T = TypeVar("T")


class ConfigurationError(ConServeGymError):
    """A configuration that cannot be used; the message names key and value."""


def _distinct(values: tuple[float | None, ...]) -> tuple[float | None, ...]:
    if len(set(values)) < len(values):
        raise ValueError("some value stands there twice")
    return values


@validated_dataclass(frozen=True, config=STRICT)
class CandidatesSpec:
    """What joint actions choose from beside the pairs of engines.

    Attributes:
        offload_above: From how many new tokens on a later turn is prefilled where the first was;
            None for never.
    """

    offload_above: Annotated[
        tuple[NotNegative | None, ...], Field(min_length=1), AfterValidator(_distinct)
    ]


@dataclass(frozen=True)
class Scenario:
    """Everything that an environment or an evaluation runs on.

    Attributes:
        cluster: The engines and what connects them.
        workload: Where conversations come from.
        arrivals: When they come.
        reward: Weight of each reward term.
        deployment: How an environment runs the GPUs; heuristics bring their own.
        offload_above: What joint actions choose from: see ``conserve_gym.placement``.
    """

    cluster: ClusterSpec
    workload: Workload
    arrivals: Arrivals
    reward: RewardWeights
    deployment: Deployment
    offload_above: tuple[float, ...] = (math.inf,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Scenario:
        """Return itself: it never changes, and copies of an environment share it."""
        return self


def scenario(config: DictConfig) -> Scenario:
    """Build a scenario from the groups of a composed configuration.

    Raises:
        ConfigurationError: A key or value is not right, or scenarios are to be drawn.
        WorkloadError: The workload or its arrivals cannot be used.
    """
    if config.get("randomise") is not None:
        raise ConfigurationError("randomise is for training and environments: here it must be null")
    return nominal_scenario(config)


def nominal_scenario(config: DictConfig) -> Scenario:
    """Build a scenario, whatever is said of drawing others.

    Raises:
        ConfigurationError: A key or value is not right.
        WorkloadError: The workload or its arrivals cannot be used.
    """
    return Scenario(
        cluster=validated(ClusterSpec, config.cluster, "cluster"),
        workload=workload(config),
        arrivals=arrivals(config),
        reward=validated(RewardWeights, config.reward, "reward"),
        deployment=validated(Deployment, config.deployment, "deployment"),
        offload_above=offload_above(config),
    )


def workload(config: DictConfig) -> Workload:
    """Build the workload of a configuration.

    Raises:
        ConfigurationError: A key or value is not right.
        WorkloadError: It cannot be used.
    """
    return cast(Workload, _instantiated(config.workload, "workload"))


def arrivals(config: DictConfig) -> Arrivals:
    """Build the arrivals of a configuration.

    Raises:
        ConfigurationError: A key or value is not right.
    """
    return cast(Arrivals, _instantiated(config.arrivals, "arrivals"))


def offload_above(config: DictConfig) -> tuple[float, ...]:
    """Return what joint actions of a configuration choose from; never is infinity.

    Raises:
        ConfigurationError: A value is not right.
    """
    values = validated(CandidatesSpec, config.candidates, "candidates").offload_above
    return tuple(math.inf if tokens is None else tokens for tokens in values)


def load_scenario(overrides: Sequence[str] = ()) -> Scenario:
    """Build a scenario from the packaged configuration without a Hydra application.

    Args:
        overrides: As on the command line: ``["cluster=a40_4mixed", "arrivals.rate=1.5"]``.

    Raises:
        ConfigurationError: A key or value is not right.
    """
    return scenario(compose_scenario(overrides))


def compose_scenario(overrides: Sequence[str] = ()) -> DictConfig:
    """Return the configuration that ``load_scenario`` builds from.

    Args:
        overrides: As there.

    Raises:
        ConfigurationError: A key or value is not right.
    """
    try:
        if GlobalHydra.instance().is_initialized():
            return hydra.compose("scenario", list(overrides))
        with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
            return hydra.compose("scenario", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(_first_lines(error)) from None


def at_rates(config: DictConfig, rates: Sequence[float]) -> list[Scenario]:
    """Build the scenario of a composed configuration at each of some arrival rates."""
    config = config.copy()
    scenarios = []
    for rate in rates:
        config.arrivals.rate = rate
        scenarios.append(scenario(config))
    return scenarios


def of_split(config: DictConfig, split: str) -> DictConfig:
    """Return a composed configuration whose recordings are taken from one split.

    Raises:
        ConfigurationError: A recording names another split.
    """
    config = config.copy()
    for key, node in _recordings(config):
        if node.split not in (None, split):
            raise ConfigurationError(f"{key}.split={node.split}: here it must be {split}")
        node.split = split
    return config


def validation_part(config: DictConfig) -> DictConfig:
    """Return a composed configuration that takes the validation split for the train split.

    What has no splits, or is taken whole, stays as it is.
    """
    config = config.copy()
    for _, node in _recordings(config):
        if node.split == "train":
            node.split = "validation"
    return config


def _recordings(config: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Yield what of a configuration's workload has splits, by key."""
    nodes = [("workload", config.workload)]
    while nodes:
        key, node = nodes.pop()
        if "split" in node:
            yield key, node
        nodes += [(f"{key}.{k}", v) for k, v in node.items() if isinstance(v, DictConfig)]


def validated_part(kind: type[T], config: DictConfig) -> T:
    """Build a validated object from those keys of a configuration that are its fields.

    Raises:
        ConfigurationError: The message names each key that is wrong, and its value.
    """
    keys = [field.name for field in fields(cast(Any, kind))]
    return validated(kind, OmegaConf.create({key: config[key] for key in keys}))


def validated(kind: type[T], section: Any, name: str = "") -> T:
    """Build a validated object from a part of a configuration.

    Raises:
        ConfigurationError: The message names each key that is wrong, and its value.
    """
    try:
        data = OmegaConf.to_container(section, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigurationError(_first_lines(error)) from None
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        raise _named(error, name) from None


def _instantiated(section: DictConfig, name: str) -> Any:
    try:
        return instantiate(section, _convert_="all")
    except OmegaConfBaseException as error:
        raise ConfigurationError(_first_lines(error)) from None
    except HydraException as error:
        if isinstance(error.__cause__, WorkloadError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, ValidationError):
            raise _named(error.__cause__, name) from None
        raise ConfigurationError(f"{name}: {_first_lines(error)}") from None


def _named(error: ValidationError, section: str) -> ConfigurationError:
    """Return the error with the full key and the value of everything that is wrong."""
    problems = []
    for problem in error.errors(include_url=False):
        key = ".".join(filter(None, [section, *map(str, problem["loc"])]))
        message = problem["msg"].removeprefix("Value error, ")
        # A check of several values has no value of its own; its message names them.
        problems.append(f"{key}={problem['input']!r}: {message}" if problem["loc"] else message)
    return ConfigurationError("; ".join(problems))


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split("\n    ")[0].split())


def output_folder(output: str | Path) -> Path:
    """Return a folder to write to.

    Raises:
        ConfigurationError: It cannot be made.
    """
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"output={folder}: {error.strerror}") from None
    return folder
