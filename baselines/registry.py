"""The names under which heuristic policies are asked for."""

from __future__ import annotations

from collections.abc import Callable

from conserve_gym.baselines.colocate import Colocate
from conserve_gym.baselines.conserve import ConServe
from conserve_gym.baselines.full_disagg import FullDisagg
from conserve_gym.baselines.random_choice import RandomChoice
from conserve_gym.deployment import Reservation
from conserve_gym.policy import Policy

# PPD (arXiv 2603.13358): appends below 512 tokens cost those who decode beside them 2 to 20 % of
# TPOT, longer ones more.
LONG_APPEND_TOKENS = 512

BASELINES: dict[str, Callable[[], Policy]] = {
    "colocate": Colocate,
    "colocate_oracle": lambda: Colocate(Reservation.ORACLE_PEAK),
    "conserve": ConServe,
    "conserve_offload": lambda: ConServe(offload_above=LONG_APPEND_TOKENS),
    "conserve_oracle": lambda: ConServe(Reservation.ORACLE_PEAK),
    "full_disagg": FullDisagg,
    "random": RandomChoice,
}


def make_baseline(name: str) -> Policy:
    """Return a heuristic policy by its name.

    Raises:
        KeyError: There is none of that name.
    """
    policy = BASELINES[name]()
    policy.name = name
    return policy
