"""The names under which heuristic policies are asked for."""

from __future__ import annotations

from collections.abc import Mapping

from conserve_gym.baselines import (
    ampd,
    bidirectional,
    colocate,
    conserve,
    dynamo_conditional,
    full_disagg,
    kairos,
    length_threshold,
    ppd,
    predicted_output,
    random_choice,
)
from conserve_gym.baselines.baseline import Baseline, Value
from conserve_gym.policy import Policy
from conserve_gym.site import Site

_MODULES = (
    ampd,
    bidirectional,
    colocate,
    conserve,
    dynamo_conditional,
    full_disagg,
    kairos,
    length_threshold,
    ppd,
    predicted_output,
    random_choice,
)

BASELINES: dict[str, Baseline] = {
    name: baseline for module in _MODULES for name, baseline in module.BASELINES.items()
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
