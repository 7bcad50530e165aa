"""What the clients of a twin say: texts of so many tokens that no cache knows."""

from __future__ import annotations

import random

from conserve_gym.agents.twin import tiny_llama
from conserve_gym.envs.calibration.endpoint import WORDS


class Letters:
    """For the tiny llama, where a letter is a token, and the engine puts one before them all.

    Args:
        seed: Of what is said.
    """

    tokens_per_character = 1.0

    def __init__(self, seed: str) -> None:
        """Begin."""
        self._random = random.Random(seed)

    def first(self, tokens: int) -> str:
        """Return a first prompt."""
        return self.more(max(tokens - 1, 1))

    def more(self, tokens: int) -> str:
        """Return what a later turn adds."""
        return "".join(self._random.choices(tiny_llama.LETTERS[1:], k=tokens))


class Words:
    """For any model: frequent words, each about a token.

    Args:
        seed: Of what is said.
    """

    tokens_per_character = 0.2

    def __init__(self, seed: str) -> None:
        """Begin."""
        self._random = random.Random(seed)

    def first(self, tokens: int) -> str:
        """Return a first prompt."""
        return self.more(tokens).lstrip()

    def more(self, tokens: int) -> str:
        """Return what a later turn adds."""
        return "".join(f" {word}" for word in self._random.choices(WORDS, k=tokens))
