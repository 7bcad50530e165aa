"""Full Disagg: every turn's whole history through the prefiller, nothing reused.

Source: arm ``all_disagg`` of github.com/jerryding95/conserve at 2a8c3bc (2026-06-10): each turn
recomputes its full prompt on the prefill engine, moves the KV to the decoder with most free KV and
gives it back at the turn's end.
"""

from __future__ import annotations

from conserve_gym import rules
from conserve_gym.baselines.baseline import Baseline
from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads


class FullDisagg:
    """Disaggregates every turn."""

    def __init__(self) -> None:
        """Let every turn pass the door."""
        self.name = "full_disagg"
        self.deployment = Deployment(decides_every_turn=True, prefix_caching=False)

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Choose the decoder with most free KV for this turn."""
        return rules.place(observation, disaggregate=True)._replace(offload_above=0.0)


BASELINES = {
    "full_disagg": Baseline(
        lambda site: FullDisagg(), Reads.BOOKKEEPING, "arXiv 2606.01839 (Full Disagg)"
    )
}
