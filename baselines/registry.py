"""The names under which heuristic policies are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from conserve_gym.baselines.baseline import Baseline, Value
from conserve_gym.policy import Policy
from conserve_gym.site import Site

_MODULES = (
    "ampd",
    "bidirectional",
    "cache_aware",
    "colocate",
    "conserve",
    "conserve_hold",
    "decoding_prefiller",
    "disaggregate",
    "dynamo_conditional",
    "freeness",
    "full_disagg",
    "kairos",
    "least_outstanding",
    "length_threshold",
    "lmetric",
    "load_switch",
    "ppd",
    "predicted_output",
    "random_choice",
    "round_robin",
    "smetric",
    "splitwise",
)

BASELINES: dict[str, Baseline] = {
    name: baseline
    for module in _MODULES
    for name, baseline in import_module(f"conserve_gym.baselines.{module}").BASELINES.items()
}


def make_baseline(name: str, site: Site, parameters: Mapping[str, Value] | None = None) -> Policy:
    """Return a heuristic policy by its name.

    Args:
        name: Of the baseline.
        site: The cluster that it shall decide for.
        parameters: Values by name; the others have their published defaults.

    Raises:
        KeyError: There is none of that name.
        ValueError: A parameter is unknown, or its value is not right.
    """
    return BASELINES[name].policy(name, site, parameters or {})
