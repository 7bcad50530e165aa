"""How much is taken of recorded conversations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from conserve_gym.envs.workloads.conversation import Recording


class Limits(NamedTuple):
    """Bounds of what is taken; infinity takes all.

    Attributes:
        conversations: How many conversations.
        max_turns: Longer conversations are cut.
        max_first_input_tokens: Conversations whose first prompt is longer are left out, such as
            those that were recorded from their middle on.
        max_context_tokens: Conversations are cut before the first turn whose prompt and output are
            longer together.
    """

    conversations: float = math.inf
    max_turns: float = math.inf
    max_first_input_tokens: float = math.inf
    max_context_tokens: float = math.inf

    def end_before(self, index: int, input_tokens: int, output_tokens: int) -> bool:
        """Return whether a conversation ends before this turn of it, counted from 0."""
        return (
            index >= self.max_turns
            or input_tokens + output_tokens > self.max_context_tokens
            or (not index and input_tokens > self.max_first_input_tokens)
        )

    def cut(self, recording: Recording) -> Recording:
        """Return the turns that are taken of a recording; none of one that is left out."""
        for index, turn in enumerate(recording.turns):
            if self.end_before(index, turn.input_tokens, turn.output_tokens):
                return recording._replace(turns=recording.turns[:index])
        return recording

    def of(self, recordings: Iterable[Recording]) -> Iterator[Recording]:
        """Yield what is taken of recordings; those beyond the last are not asked for."""
        taken = 0
        for recording in recordings:
            cut = self.cut(recording)
            if cut.turns:
                yield cut
                taken += 1
                if taken >= self.conversations:
                    return
