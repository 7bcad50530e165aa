"""A decision tree that a person can read, as a policy: disaggregate or not.

Where a conversation goes is left to the rules that environments share: it is decoded where it was,
or at the engine with most free KV, and prefilled there or at the least loaded prefiller.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from conserve_gym import rules
from conserve_gym.deployment import Deployment
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.envs.fields import STRICT
from conserve_gym.observation import FIELDS_OF, FloatArray, Observation
from conserve_gym.placement import Placement

TREE = "tree"
"""Key of the tree in a rule's file."""

_ENDS = {
    "decoder": "at the engine that would decode it",
    "prefiller": "at the engine that would prefill it, were it disaggregated",
    "mean": "mean over all engines",
}

_SHARED = (*FIELDS_OF["cluster"], *FIELDS_OF["conversation"])
FEATURES = {
    **{f"{field.group}.{field.name}": field for field in _SHARED},
    **{f"{end}.{field.name}": field for end in _ENDS for field in FIELDS_OF["engines"]},
}
"""What a tree may ask for, in the order of ``features``."""


@dataclass(frozen=True, config=STRICT)
class Split:
    """A question and what follows from its answers.

    Attributes:
        feature: One of ``FEATURES``.
        threshold: In the unit of the field.
        at_most: What is done up to the threshold.
        above: What is done beyond it.

    Raises:
        ValueError: There is no such feature.
    """

    feature: str
    threshold: Annotated[float, Field(allow_inf_nan=False)]
    at_most: Split | Leaf
    above: Split | Leaf

    def __post_init__(self) -> None:
        """Check the name."""
        if self.feature not in FEATURES:
            raise ValueError(f"feature={self.feature!r} is none of {', '.join(FEATURES)}")


Leaf = Literal["colocate", "disaggregate"]
Node: TypeAlias = Split | Leaf

_INDEX = {name: i for i, name in enumerate(FEATURES)}
_NODE: TypeAdapter[Node] = TypeAdapter(Node)


def features(observation: Observation) -> FloatArray:
    """Return what a tree looks at, unscaled, in the order of ``FEATURES``."""
    decode_at = rules.home_decoder(observation)
    engines = observation.engines
    return np.concatenate(
        [
            observation.raw[: len(_SHARED)],
            engines[decode_at],
            engines[rules.prefiller_or_self(observation, decode_at)],
            engines.mean(axis=0),
        ]
    )


def placed_by_rule(observation: Observation, *, disaggregate: bool) -> Placement:
    """Return where a conversation goes, given whether it is disaggregated.

    Where no engine prefills for the decoder it is colocated.
    """
    decode_at = rules.home_decoder(observation)
    prefill_at = rules.prefiller_or_self(observation, decode_at) if disaggregate else decode_at
    return Placement(prefill_at, decode_at)


class DistilledRule:
    """Disaggregates where a tree says so.

    Args:
        name: Name of the policy.
        deployment: How it runs the GPUs.
        tree: The tree, or the one answer to everything.
    """

    def __init__(self, name: str, deployment: Deployment, tree: Node) -> None:
        """Take the tree."""
        self.name = name
        self.deployment = deployment
        self.tree = tree

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Choose where the conversation runs."""
        return placed_by_rule(observation, disaggregate=self.disaggregates(features(observation)))

    def disaggregates(self, row: FloatArray) -> bool:
        """Return the tree's answer to a row of features."""
        node = self.tree
        while isinstance(node, Split):
            node = node.above if row[_INDEX[node.feature]] > node.threshold else node.at_most
        return node == "disaggregate"

    def text(self) -> str:
        """Return the tree as nested questions, and what they ask for."""
        asked = dict.fromkeys(split.feature for split in _splits(self.tree))
        lines = [*_lines(self.tree), *([""] if asked else [])]
        for name in asked:
            end, field = name.partition(".")[0], FEATURES[name]
            where = f", {_ENDS[end]}" if end in _ENDS else ""
            lines.append(f"{name}: {field.meaning}{where}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "name": self.name,
            "deployment": self.deployment.to_json(),
            TREE: _NODE.dump_python(self.tree),
        }

    @classmethod
    def load(cls, path: Path) -> DistilledRule:
        """Read a rule's file.

        Raises:
            ConfigurationError: It cannot be read, or holds no rule of this version.
        """
        try:
            values = json.loads(path.read_text("utf-8"))
            deployment = Deployment.from_json(values["deployment"])
            return cls(str(values["name"]), deployment, _NODE.validate_python(values[TREE]))
        except OSError as error:
            raise ConfigurationError(f"policy {str(path)!r}: {error.strerror}") from None
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, (TREE, *problem["loc"])))
            raise ConfigurationError(f"{path}: {where}: {problem['msg']}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigurationError(f"policy {str(path)!r} is no rule ({error!r})") from None


def _splits(node: Node) -> Iterator[Split]:
    if isinstance(node, Split):
        yield node
        yield from _splits(node.at_most)
        yield from _splits(node.above)


def _lines(node: Node, indent: str = "") -> Iterator[str]:
    if not isinstance(node, Split):
        yield indent + node
        return
    unit = FEATURES[node.feature].unit
    yield f"{indent}if {node.feature} <= {node.threshold:,g} {unit}:"
    yield from _lines(node.at_most, indent + "    ")
    yield f"{indent}else:"
    yield from _lines(node.above, indent + "    ")
