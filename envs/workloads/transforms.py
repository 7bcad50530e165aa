"""Changes to recordings before they are played, one after the other, each with a name for tables.

``{cap_gaps: {user: 600}}`` is how a configuration writes ``CapGaps(user=600)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, NotNegative, Positive
from conserve_gym.envs.workloads import splits
from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError


class Transform(ABC):
    """A change to recordings."""

    @property
    @abstractmethod
    def name(self) -> str:
        """How it is called in tables."""

    @abstractmethod
    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return the changed recordings; those that are given stay as they are.

        Raises:
            WorkloadError: They are not such that it can change them.
        """


@dataclass(frozen=True, config=STRICT)
class CapGaps(Transform):
    """Counts longer gaps as so many seconds, each kind as its own; None leaves a kind as it is.

    What is cut from a gap comes off the recorded times of the turns after it too. A gap that nobody
    knows stays unknown.

    Attributes:
        tool: Longest gap in which a tool ran.
        user: Longest gap in which a human thought.
        mixed: Longest gap with both.
        unknown: Longest gap of unknown kind.

    Raises:
        ValueError: None is given, or one is below 0.
    """

    tool: NotNegative | None = None
    user: NotNegative | None = None
    mixed: NotNegative | None = None
    unknown: NotNegative | None = None

    def __post_init__(self) -> None:
        """Check that it does something."""
        if not self._longest():
            raise ValueError("give at least one of tool, user, mixed, unknown")

    @property
    def name(self) -> str:
        """How it is called in tables."""
        caps = ", ".join(f"{kind} {seconds:g} s" for kind, seconds in self._longest().items())
        return f"gaps capped ({caps})"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return recordings without longer gaps."""
        longest = self._longest()
        changed = []
        for recording in recordings:
            turns, cut_s = list(recording.turns[:1]), 0.0
            for turn in recording.turns[1:]:
                if turn.not_before_s:
                    raise WorkloadError("cap_gaps must stand before open_loop, which has no gaps")
                gap_s = turn.gap_s
                cap_s = longest.get(turn.gap_kind, math.inf)
                if gap_s > cap_s:
                    cut_s += gap_s - cap_s
                    gap_s = cap_s
                # Where gaps are estimates, they may be longer than the time between two turns.
                sent_s = max(turn.sent_s - cut_s, turns[-1].sent_s)
                turns.append(turn._replace(gap_s=gap_s, sent_s=sent_s))
            changed.append(recording._replace(turns=tuple(turns)))
        return changed

    def _longest(self) -> dict[str, float]:
        caps = {"tool": self.tool, "user": self.user, "mixed": self.mixed, "unknown": self.unknown}
        return {kind: seconds for kind, seconds in caps.items() if seconds is not None}


@dataclass(frozen=True, config=STRICT)
class CutContext(Transform):
    """Ends conversations before their context grows too long.

    Attributes:
        tokens: A conversation ends before the first turn whose prompt and output are longer
            together; one without a turn is left out.
    """

    tokens: PositiveInt

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"cut at {self.tokens:,} tokens"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return recordings whose contexts are short enough."""
        cut = (recording._replace(turns=self._kept(recording.turns)) for recording in recordings)
        return [recording for recording in cut if recording.turns]

    def _kept(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        for i, turn in enumerate(turns):
            if turn.input_tokens + turn.output_tokens > self.tokens:
                return turns[:i]
        return turns


@dataclass(frozen=True, config=STRICT)
class ScaleLengths(Transform):
    """Makes prompts and outputs longer or shorter; what a turn reuses of the last ones follows.

    Attributes:
        new: Factor of the new tokens of every prompt.
        output: Factor of every output.
    """

    new: Positive = 1.0
    output: Positive = 1.0

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"new tokens × {self.new:g}, outputs × {self.output:g}"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return recordings with other lengths.

        Raises:
            WorkloadError: A context grows beyond 2^53 tokens.
        """
        return [
            recording._replace(turns=tuple(self._scaled(recording.turns)))
            for recording in recordings
        ]

    def _scaled(self, turns: tuple[Turn, ...]) -> list[Turn]:
        scaled: list[Turn] = []
        was_held = held = 0
        for turn in turns:
            reused = turn.input_tokens - turn.new_tokens
            # A turn that kept all keeps all, and one that kept a third keeps a third.
            kept = round(held * (reused / was_held)) if reused else 0
            lengths = turn.new_tokens * self.new, turn.output_tokens * self.output
            if kept + sum(lengths) >= 2**53:
                raise WorkloadError(
                    f"scale_lengths.new={self.new:g}, output={self.output:g}: a context grows "
                    "beyond 2^53 tokens"
                )
            new, output = (max(1, round(length)) for length in lengths)
            was_held = turn.input_tokens + turn.output_tokens
            held = kept + new + output
            changed = turn._replace(input_tokens=kept + new, new_tokens=new, output_tokens=output)
            scaled.append(changed)
        return scaled


@dataclass(frozen=True, config=STRICT)
class ScaleLoad(Transform):
    """Makes conversations arrive so many times as densely as recorded.

    Attributes:
        factor: That many times.
    """

    factor: Positive

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"recorded load × {self.factor:g}"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return recordings that arrive at other times."""
        return [r._replace(arrival_s=r.arrival_s / self.factor) for r in recordings]


@dataclass(frozen=True, config=STRICT)
class Sample(Transform):
    """Draws conversations without putting them back; their order stays.

    Attributes:
        conversations: How many.
        seed: Of the draw.
    """

    conversations: PositiveInt
    seed: NonNegativeInt = 0

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"a sample of {self.conversations:,} (seed {self.seed})"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return the drawn ones."""
        _at_least(self.conversations, recordings, "sample.conversations")
        return _drawn(recordings, self.conversations, np.random.default_rng(self.seed))


@dataclass(frozen=True, config=STRICT)
class First(Transform):
    """Takes the first conversations.

    Attributes:
        conversations: How many.
    """

    conversations: PositiveInt

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"the first {self.conversations:,}"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return the first ones."""
        _at_least(self.conversations, recordings, "first.conversations")
        return recordings[: self.conversations]


@dataclass(frozen=True, config=STRICT)
class FirstInput(Transform):
    """Takes conversations by their first prompt, such as those recorded from their start on.

    Attributes:
        least: Shortest first prompt in tokens.
        most: Longest; None takes all.

    Raises:
        ValueError: ``most`` is below ``least``.
    """

    least: PositiveInt = 1
    most: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Check the limits against each other."""
        if self.most is not None and self.most < self.least:
            raise ValueError(f"most={self.most} is below least={self.least}")

    @property
    def name(self) -> str:
        """How it is called in tables."""
        least = f"from {self.least:,} " if self.least > 1 else ""
        most = "" if self.most is None else f"up to {self.most:,} "
        return f"first prompts {least}{most}tokens" if least or most else "all first prompts"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return those with such a first prompt."""
        most = math.inf if self.most is None else self.most
        return [r for r in recordings if self.least <= r.turns[0].input_tokens <= most]


@dataclass(frozen=True, config=STRICT)
class OfSplit(Transform):
    """Takes the conversations of one split, told by their names.

    Attributes:
        part: Which one.
    """

    part: splits.Split

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"{self.part} split"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return those of the split."""
        return splits.of_split(recordings, self.part)


@dataclass(frozen=True, config=STRICT)
class Mix(Transform):
    """Mixes the conversations with those of another file, as many as there are for the shares.

    Those with known arrivals come in their order, each file from its own start; else the order is
    drawn.

    Attributes:
        path: The other file.
        share: Its share of the conversations.
        format: Its format.
        seed: Of the draw and the order.
        transforms: Of the other file's recordings.
    """

    path: Path
    share: Annotated[float, Field(gt=0.0, lt=1.0)]
    format: str = "auto"
    seed: NonNegativeInt = 0
    transforms: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        """Build the other file's transforms."""
        object.__setattr__(self, "transforms", tuple(built(self.transforms, "mix.transforms")))

    @property
    def name(self) -> str:
        """How it is called in tables."""
        changes = "".join(f", {transform.name}" for transform in self.transforms)
        return f"mixed with {self.share:.4g} of {self.path.name}{changes} (seed {self.seed})"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return a mixture of both.

        Raises:
            WorkloadError: The other file cannot be read, or one of them has too few.
        """
        from conserve_gym.envs.workloads.readers.registry import open_recordings

        others = applied(self.transforms, list(open_recordings(self.path, self.format)[1]))
        return self.of(recordings, others)

    def of(self, recordings: list[Recording], others: list[Recording]) -> list[Recording]:
        """Return a mixture with other recordings."""
        total = min(len(recordings) / (1.0 - self.share), len(others) / self.share)
        counts = round(total * (1.0 - self.share)), round(total * self.share)
        if not all(counts):
            raise WorkloadError(
                f"mix.share={self.share:g}: {len(recordings):,} and {len(others):,} conversations "
                "are too few for one of each"
            )
        rng = np.random.default_rng(self.seed)
        mixed = [
            recording
            for part, count in zip((recordings, others), counts, strict=True)
            for recording in _from_start(_drawn(part, count, rng))
        ]
        if not any(math.isnan(recording.arrival_s) for recording in mixed):
            return sorted(mixed, key=lambda recording: recording.arrival_s)
        return [mixed[i] for i in rng.permutation(len(mixed))]


@dataclass(frozen=True, config=STRICT)
class OpenLoop(Transform):
    """Lets every turn come when it was recorded, whatever the cluster does.

    A turn that is due while the one before it still runs comes when that has ended. Gaps no longer
    count. Without it turns come in a closed loop, their gap after the end of the one before.
    """

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return "open loop (turns at their recorded times, or at the end of the one before)"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return recordings with fixed times.

        Raises:
            WorkloadError: The time of a turn is not known, or falls.
        """
        return [self._fixed(recording) for recording in recordings]

    @staticmethod
    def _fixed(recording: Recording) -> Recording:
        fixed, before_s = [], 0.0
        for i, turn in enumerate(recording.turns):
            sent_s = turn.sent_s if i else 0.0
            if not before_s <= sent_s < math.inf:
                why = f"below {before_s:g} s of the turn before it"
                raise WorkloadError(
                    f"open_loop: conversation {recording.identifier!r}, turn {i}: recorded time "
                    f"sent_s={sent_s:g} is {'not known' if math.isnan(sent_s) else why}"
                )
            fixed.append(turn._replace(gap_s=0.0, not_before_s=sent_s))
            before_s = sent_s
        return recording._replace(turns=tuple(fixed))


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


def applied(transforms: Sequence[Transform], recordings: list[Recording]) -> list[Recording]:
    """Return the recordings after all transforms, in order.

    Raises:
        WorkloadError: One cannot be applied, or leaves nothing.
    """
    for transform in transforms:
        recordings = transform(recordings)
        if not recordings:
            raise WorkloadError(f"workload.transforms: {transform.name}: no conversation is left")
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


def _at_least(count: int, recordings: list[Recording], field: str) -> None:
    if len(recordings) < count:
        raise WorkloadError(f"{field}={count:,}: there are only {len(recordings):,}")


def _drawn(recordings: list[Recording], count: int, rng: np.random.Generator) -> list[Recording]:
    chosen = rng.choice(len(recordings), size=count, replace=False)
    return [recordings[i] for i in np.sort(chosen)]


def _from_start(recordings: list[Recording]) -> list[Recording]:
    start_s = min(recording.arrival_s for recording in recordings)
    return [r._replace(arrival_s=r.arrival_s - start_s) for r in recordings]
