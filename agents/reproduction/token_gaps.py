"""Gaps between single tokens of last turns, which the artifact pools over all conversations.

Its geometric mean and p95 of last-turn TBT are taken over tokens, each gap over its conversation's
standalone mean (``lastturn_tbt_tokens`` in ``s5_metrics.py``; see ``recording``), so that long last
turns count by their length; its SLO violations are of conversations' means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from conserve_gym.envs.serving.timeline import Timeline, Track
from conserve_gym.ledger import ConversationEnded, Event, FirstToken, TurnFinished


def last_turn_gaps(
    events: Iterable[Event], timeline: Timeline, standalone_s: Sequence[float]
) -> np.ndarray:
    """Return every gap between two tokens of a last turn, over its conversation's standalone mean.

    Steps within a run of decode steps count as equally long. In a long run the last is up to 13 %
    longer than the first, which moves p95 and geometric mean of the paper's arms by 0.05 % at most.

    Args:
        events: The ledger of a finished episode.
        timeline: What its engines did.
        standalone_s: Standalone mean gap of each conversation's last turn; 0 where it has none.
    """
    steps = [_steps(track) for track in timeline.tracks]
    first: dict[int, float] = {}
    finished: dict[int, TurnFinished] = {}
    gaps = [np.empty(0)]
    for event in events:
        if isinstance(event, FirstToken):
            first[event.conversation] = event.time
        elif isinstance(event, TurnFinished):
            finished[event.conversation] = event
        elif isinstance(event, ConversationEnded) and standalone_s[event.conversation]:
            last = finished[event.conversation]
            ends, seconds = steps[last.engine]
            # Half a microsecond: times of a run's steps are computed, not recorded.
            bounds = np.searchsorted(ends, np.array([first[event.conversation], last.time]) + 5e-7)
            gaps.append(seconds[bounds[0] : bounds[1]] / standalone_s[event.conversation])
    return np.concatenate(gaps)


def _steps(track: Track) -> tuple[np.ndarray, np.ndarray]:
    """Return end and length of every step of an engine in which sequences decoded."""
    spans = [span for span in track.spans if span.sequences and span.steps]
    counts = np.array([span.steps for span in spans], dtype=np.int64)
    began = np.array([span.began for span in spans])
    length = (np.array([span.ended for span in spans]) - began) / counts
    within = np.arange(1, counts.sum() + 1) - np.repeat(counts.cumsum() - counts, counts)
    seconds = np.repeat(length, counts)
    return np.repeat(began, counts) + within * seconds, seconds
