"""Statistics of recorded conversations, and a picture of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.envs.workloads.conversation import Recording, Turn
from conserve_gym.envs.workloads.samples import Array, Samples
from conserve_gym.files import whole

PERCENTILES = (50, 95, 99)
QUARTILES = (25, 50, 75)


@dataclass(frozen=True)
class Profile:
    """What recordings look like.

    Attributes:
        samples: Lengths and gaps.
        arrivals_s: Known arrivals, rising.
        idle: Share of its life in which each conversation of several turns waits for a tool or a
            human; NaN where a gap is not known.
        contexts: Median and p95 of prompts by turn, as long as 20 conversations have it.
        turn_1_shares: Share of each conversation's new input that its first prompt is.
    """

    samples: Samples
    arrivals_s: Array
    idle: Array
    contexts: Array
    turn_1_shares: Array

    @classmethod
    def of(cls, recordings: Iterable[Recording], engine: StandaloneEngine) -> Profile:
        """Read recordings and return their profile.

        Args:
            recordings: The conversations.
            engine: Says how long turns take: no recording has service times of this cluster, so
                idle shares are of a life on a lone engine.

        Raises:
            WorkloadError: There are none, or one cannot be read.
        """
        arrivals: list[float] = []
        idle: list[float] = []
        turn_1_shares: list[float] = []
        prompts: list[list[int]] = []

        def turns() -> Iterable[tuple[Turn, ...]]:
            for recording in recordings:
                arrivals.append(recording.arrival_s)
                idle.append(idle_share(recording.turns, engine))
                new = sum(turn.new_tokens for turn in recording.turns)
                turn_1_shares.append(recording.turns[0].new_tokens / new)
                for place, turn in enumerate(recording.turns):
                    if place == len(prompts):
                        prompts.append([])
                    prompts[place].append(turn.input_tokens)
                yield recording.turns

        samples = Samples.of(turns())
        known = np.array(arrivals)
        shown = [np.percentile(each, (50, 95)) for each in prompts if len(each) >= 20]
        return cls(
            samples,
            np.sort(known[~np.isnan(known)]),
            np.array(idle)[samples.turns > 1],
            np.array(shown).reshape(-1, 2),
            np.array(turn_1_shares),
        )

    def statistics(self) -> dict[str, float]:
        """Return every statistic by name; NaN of what the recordings do not say."""
        samples = self.samples
        new = samples.first_input.sum() + samples.new.sum()
        rewriting = samples.rewrites
        found = {
            "conversations": float(samples.turns.size),
            "turns_total": float(samples.turns.sum()),
        }
        for name, values in samples.marginals().items():
            for percent in PERCENTILES:
                found[f"{name}_p{percent}"] = _percentile(values, percent)
        for percent in QUARTILES:
            found[f"idle_share_p{percent}"] = _percentile(self.idle, percent)
        found["turn_1_share_of_new_input"] = float(samples.first_input.sum() / new)
        found["rewritten_turns_share"] = float(rewriting.mean()) if rewriting.size else math.nan
        later = max(samples.new.sum(), 1.0)
        found["rewritten_turns_share_of_later_new"] = float(samples.new[rewriting].sum() / later)
        found["unknown_gaps"] = float(np.isnan(samples.gap_s).sum())
        for kind, name in enumerate(samples.kinds):
            found[f"{name}_gaps_share"] = float((samples.kind == kind).mean())
        gaps = np.diff(self.arrivals_s)
        if gaps.size and gaps.mean() > 0.0:
            found["arrivals_per_s"] = float(1.0 / gaps.mean())
            found["arrivals_cv"] = float(gaps.std() / gaps.mean())
        return found


def idle_share(turns: tuple[Turn, ...], engine: StandaloneEngine) -> float:
    """Return the share of a conversation's life on a lone engine that its gaps take."""
    gaps = math.fsum(turn.gap_s for turn in turns[1:])
    if math.isnan(gaps):
        return math.nan
    # From the arrival of turn 1, so without what preceded it.
    life = engine.latencies((turns[0]._replace(gap_s=0.0), *turns[1:])).e2e_s
    return gaps / life


def draw(profile: Profile, title: str, path: Path) -> None:
    """Draw a profile as one picture of distributions.

    Args:
        profile: What to draw.
        title: Said above it.
        path: The png file.
    """
    samples = profile.samples
    figure = Figure(figsize=(13, 10), layout="constrained")
    axes = figure.subplots(3, 3).flat
    figure.suptitle(title, fontsize=11)
    marginals = samples.marginals()
    _cumulative(next(axes), "turns", "turns", marginals["turns"])
    _cumulative(next(axes), "first input", "tokens", marginals["first_input"])
    _cumulative(next(axes), "new tokens of later turns", "tokens", marginals["later_new"])
    _cumulative(next(axes), "output", "tokens", marginals["output"])
    gaps = next(axes)
    for kind, name in enumerate(samples.kinds):
        of_kind = samples.gap_s[(samples.kind == kind) & ~np.isnan(samples.gap_s)]
        _cumulative(gaps, "gap before a turn", "s", of_kind, f"{name} ({of_kind.size:,})")
    growth = next(axes)
    if profile.contexts.size:
        turn = np.arange(1, len(profile.contexts) + 1)
        growth.plot(turn, profile.contexts[:, 0], label="median")
        growth.plot(turn, profile.contexts[:, 1], label="p95")
        growth.legend(fontsize=8)
    growth.set(title="prompt by turn", xlabel="turn", ylabel="tokens")
    arrivals = next(axes)
    if profile.arrivals_s.size > 1:
        arrivals.hist(profile.arrivals_s, bins=60)
    else:
        _nothing(arrivals)
    arrivals.set(title="arrivals", xlabel="s", ylabel="conversations")
    known = profile.idle[~np.isnan(profile.idle)]
    _shares(next(axes), "idle share of a conversation", known if known.any() else known[:0])
    _shares(next(axes), "turn 1's share of its new input", profile.turn_1_shares)
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def _cumulative(axes: Axes, title: str, unit: str, values: Array, label: str = "") -> None:
    axes.set(title=title, xlabel=unit, ylabel="share up to")
    if not values.size:
        _nothing(axes)
        return
    ordered = np.sort(values)
    axes.plot(ordered, np.arange(1, ordered.size + 1) / ordered.size, label=label or None)
    axes.set_xscale("symlog", linthresh=1.0)
    if label:
        axes.legend(fontsize=8)


def _shares(axes: Axes, title: str, shares: Array) -> None:
    axes.set(title=title, xlabel="share", ylabel="share of conversations up to", xlim=(0.0, 1.0))
    if not shares.size:
        _nothing(axes)
        return
    axes.plot(np.sort(shares), np.arange(1, shares.size + 1) / shares.size)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not known", ha="center", va="center", transform=axes.transAxes)


def _percentile(values: Array, percent: float) -> float:
    known = values[~np.isnan(values)]
    return float(np.percentile(known, percent)) if known.size else math.nan
