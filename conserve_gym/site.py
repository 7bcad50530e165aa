"""What an operator knows of a cluster before the first conversation comes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from conserve_gym.fleet import Fleet
from conserve_gym.profiles import EngineProfile, NetworkProfile


@dataclass(frozen=True, eq=False)
class Site:
    """A cluster as its operator knows it.

    Attributes:
        fleet: Engines with the roles that the cluster gives them, whatever an arm makes of them.
        engines: Profile of each engine in that role.
        network: Profile of the wires between them.
    """

    fleet: Fleet
    engines: tuple[EngineProfile, ...]
    network: NetworkProfile

    @cached_property
    def prefillers(self) -> tuple[int, ...]:
        """Engines that the cluster sets apart for prefill; where none is, those that may do it."""
        roles = self.fleet.roles
        apart = tuple(i for i, role in enumerate(roles) if not role.decodes)
        return apart or tuple(i for i, role in enumerate(roles) if role.prefills_for_others)
