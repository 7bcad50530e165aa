"""What every change to recordings offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from conserve_gym.envs.workloads.conversation import Recording


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
