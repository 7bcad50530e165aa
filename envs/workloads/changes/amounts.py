"""Shorter gaps, shorter contexts, other lengths, more load."""

from __future__ import annotations

import math

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, NotNegative, Positive
from conserve_gym.envs.workloads.changes.transform import Transform
from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError


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
