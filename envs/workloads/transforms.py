"""Transforms by name, and how they are applied one after the other.

``{cap_gaps: {user: 600}}`` is how a configuration writes ``CapGaps(user=600)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from conserve_gym.envs.workloads.changes.amounts import (
    CapGaps,
    CutContext,
    ScaleLengths,
    ScaleLoad,
)
from conserve_gym.envs.workloads.changes.choices import First, FirstInput, OfSplit, Sample
from conserve_gym.envs.workloads.changes.mix import Mix
from conserve_gym.envs.workloads.changes.open_loop import OpenLoop
from conserve_gym.envs.workloads.changes.transform import Transform
from conserve_gym.envs.workloads.conversation import Recording, WorkloadError

TRANSFORMS: dict[str, type[Transform]] = {
    "cap_gaps": CapGaps,
    "cut_context": CutContext,
    "scale_lengths": ScaleLengths,
    "scale_load": ScaleLoad,
    "sample": Sample,
    "first": First,
    "first_input": FirstInput,
    "split": OfSplit,
    "mix": Mix,
    "open_loop": OpenLoop,
}
"""Each transform by the name that configurations call it by."""


def built(
    given: Sequence[Transform | Mapping[str, Any]], field: str = "workload.transforms"
) -> list[Transform]:
    """Return transforms, those that are written as ``{name: {field: value}}`` built.

    Args:
        given: In the order in which they are applied.
        field: Where they stand, for errors.

    Raises:
        WorkloadError: The message names field and value.
    """
    return [
        one if isinstance(one, Transform) else _built(one, f"{field}.{i}")
        for i, one in enumerate(given)
    ]


def applied(
    transforms: Sequence[Transform],
    recordings: list[Recording],
    field: str = "workload.transforms",
) -> list[Recording]:
    """Return the recordings after all transforms, in order.

    Args:
        transforms: The transforms.
        recordings: What they change.
        field: Where they stand, for errors.

    Raises:
        WorkloadError: One cannot be applied, or leaves nothing.
    """
    for transform in transforms:
        recordings = transform(recordings)
        if not recordings:
            raise WorkloadError(f"{field}: {transform.name}: no conversation is left")
    return recordings


def _built(given: object, field: str) -> Transform:
    if not isinstance(given, Mapping) or len(given) != 1:
        raise WorkloadError(f"{field}={given!r}: must be one {{name: {{field: value}}}}")
    ((name, options),) = given.items()
    if name not in TRANSFORMS:
        raise WorkloadError(f"{field}={name!r} is none of {', '.join(TRANSFORMS)}")
    try:
        adapter: TypeAdapter[Transform] = TypeAdapter(TRANSFORMS[name])
        return adapter.validate_python({} if options is None else options)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, (field, name, *problem["loc"])))
        why = problem["msg"].removeprefix("Value error, ")
        raise WorkloadError(f"{key}={problem['input']!r}: {why}") from None
