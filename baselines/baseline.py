"""What the registry knows of a heuristic policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from conserve_gym.policy import Policy, Reads
from conserve_gym.site import Site

Value: TypeAlias = float | int | str


@dataclass(frozen=True)
class Parameter:
    """A number or a choice that a rule can be tuned by.

    Attributes:
        default: As published, where it is; a whole number stays one.
        low: Smallest value worth trying.
        high: Largest value worth trying.
        logarithmic: Whether ratios matter rather than differences.
        most: Largest value that makes sense, such as 1 for a share.
        choices: What there is to choose from, for a parameter that is no number.
    """

    default: Value
    low: float = 0.0
    high: float = 0.0
    logarithmic: bool = False
    most: float = math.inf
    choices: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Baseline:
    """A heuristic policy.

    Attributes:
        make: Builds it for a cluster, with parameters by name.
        reads: The most that it looks at.
        source: Where the rule and its defaults are published.
        parameters: What can be tuned.
    """

    make: Callable[..., Policy]
    reads: Reads
    source: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def policy(self, name: str, site: Site, parameters: Mapping[str, Value]) -> Policy:
        """Build the policy, called by its name and by the parameters that differ from the defaults.

        Args:
            name: Of the baseline.
            site: The cluster that it shall decide for.
            parameters: Values by name; the others have their defaults.

        Raises:
            ValueError: A parameter is unknown, or its value is not right; the message names both.
        """
        for key, value in parameters.items():
            if key not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise ValueError(f"{name}.{key}={value!r}: its parameters are: {known}")
            self._check(f"{name}.{key}={value!r}", self.parameters[key], value)
        defaults = {key: parameter.default for key, parameter in self.parameters.items()}
        policy = self.make(site, **{**defaults, **parameters})
        changed = [
            f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
            for k, v in parameters.items()
            if v != defaults[k]
        ]
        policy.name = f"{name}({', '.join(changed)})" if changed else name
        return policy

    @staticmethod
    def _check(given: str, parameter: Parameter, value: Value) -> None:
        if parameter.choices:
            if value not in parameter.choices:
                raise ValueError(f"{given} is none of {', '.join(map(str, parameter.choices))}")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{given} is no number")
        elif not 0 <= value <= parameter.most or value == math.inf:
            most = "finite" if parameter.most == math.inf else f"at most {parameter.most:g}"
            raise ValueError(f"{given} must not be negative, and {most}")
        elif isinstance(parameter.default, int) and value != int(value):
            raise ValueError(f"{given} is not a whole number")
