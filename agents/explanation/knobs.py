"""Thresholds that serving routers already have, and the text that sets them.

How they decide is in ``baselines/length_threshold.py`` and ``baselines/dynamo_conditional.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from conserve_gym.baselines.baseline import Value
from conserve_gym.baselines.registry import make_baseline
from conserve_gym.policy import Policy
from conserve_gym.site import Site


@dataclass(frozen=True)
class Knobs:
    """A router's rule that has thresholds.

    Attributes:
        rule: The baseline that decides as the router does.
        short: Names of its thresholds on prompts: tokens, and share of the full prompt where it
            has one.
        busy: Name of its threshold on prefillers' load; empty without one.
        file: Name of the snippet.
        text: What sets the thresholds.
    """

    rule: str
    short: tuple[str, ...]
    busy: str
    file: str
    text: Callable[[Mapping[str, Value]], str]


def _llm_d(values: Mapping[str, Value]) -> str:
    """Return the plugins of an ``EndpointPickerConfig``.

    Source: docs of llm-d/llm-d-router (2026), ``disagg-profile-handler``.
    """
    return (
        "# llm-d: these plugins, with your filters, scorers and pickers, in EndpointPickerConfig\n"
        "plugins:\n"
        "- type: prefix-based-pd-decider\n"
        "  parameters:\n"
        f"    nonCachedTokens: {values['tokens']}\n"
        "- type: disagg-profile-handler\n"
        "  parameters:\n"
        "    deciders:\n"
        "      prefill: prefix-based-pd-decider\n"
    )


def _dynamo(policy: str, **fields: str) -> Callable[[Mapping[str, Value]], str]:
    """Return what writes Dynamo's flags.

    Source: docs.nvidia.com/dynamo, Conditional Disaggregation (1.5.1, experimental).
    """

    def text(values: Mapping[str, Value]) -> str:
        config: dict[str, Any] = {"policy": policy}
        config |= {field: values[name] for field, name in fields.items()}
        return (
            "python -m dynamo.frontend --router-mode kv --router-conditional-disagg \\\n"
            f"    --router-conditional-disagg-config '{json.dumps(config)}'\n"
        )

    return text


_ISL = {"eff_isl_threshold": "tokens", "eff_isl_ratio_threshold": "ratio"}
_LOAD = {"prefill_busy_threshold": "busy"}

KNOBS = (
    Knobs("llm_d", ("tokens",), "", "llm_d.yaml", _llm_d),
    Knobs("dynamo_isl", ("tokens", "ratio"), "", "dynamo_isl.sh", _dynamo("isl_bounding", **_ISL)),
    Knobs("dynamo_load", (), "busy", "dynamo_load.sh", _dynamo("prefill_load", **_LOAD)),
    Knobs(
        "dynamo_isl_or_load",
        ("tokens", "ratio"),
        "busy",
        "dynamo_isl_or_load.sh",
        _dynamo("isl_or_load", **_ISL, **_LOAD),
    ),
)


@dataclass(frozen=True)
class Setting:
    """Thresholds with values.

    Attributes:
        knobs: Whose.
        values: By the rule's names.
    """

    knobs: Knobs
    values: dict[str, Value]

    @property
    def asked(self) -> dict[str, dict[str, Value]]:
        """The rule as ``policies=`` takes it."""
        return {self.knobs.rule: self.values}

    @property
    def text(self) -> str:
        """What sets the router."""
        return self.knobs.text(self.values)

    def policy(self, site: Site) -> Policy:
        """Return the rule, for a cluster."""
        return make_baseline(self.knobs.rule, site, self.values)
