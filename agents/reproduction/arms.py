"""The arms of the paper, and the same without knowledge of the future.

Source of the rules: ``conversation.py`` and ``scheduler.py`` of the artifact (see ``recording``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from conserve_gym.baselines.colocate import Colocate
from conserve_gym.baselines.conserve import ConServe
from conserve_gym.baselines.full_disagg import FullDisagg
from conserve_gym.deployment import Reservation
from conserve_gym.policy import Policy


class Run(StrEnum):
    """How the artifact runs an arm.

    WHOLE runs all engines. PROXIED does too, with every turn through the prefill engine. DECODERS
    runs the decoders alone, where prompts come with their KV; what prefill and transfer take is
    added to latencies, and the prefill engine's energy to theirs. FREE_PREFILL has a fourth decoder
    instead, and prefill costs nothing but the time that is added.
    """

    WHOLE = "whole"
    PROXIED = "proxied"
    DECODERS = "decoders"
    FREE_PREFILL = "free_prefill"


@dataclass(frozen=True)
class Arm:
    """A way to run the cluster.

    Attributes:
        name: How it is called in files.
        label: How it is called in pictures; as in the paper where it is the paper's.
        color: In pictures.
        policy: Makes whoever places conversations.
        run: How the artifact runs it; None if only the user's clock makes sense.
        overcounts: Whether misrouted turns wait as the artifact has it, with too much history; None
            without misrouted turns.
        own_run: Whether it also runs on the user's clock.
        in_paper: Whether the paper shows it.
    """

    name: str
    label: str
    color: str
    policy: Callable[[], Policy]
    run: Run | None
    overcounts: bool | None = None
    own_run: bool = True
    in_paper: bool = False

    @property
    def sees_future(self) -> bool:
        """Whether it uses what no scheduler can know."""
        return self.policy().deployment.sees_future


_PEAK = Reservation.ORACLE_PEAK

ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(
            "colocate_oracle",
            "Collocated",
            "#1f77b4",
            partial(Colocate, _PEAK),
            Run.WHOLE,
            in_paper=True,
        ),
        Arm("colocate", "Collocated, per turn", "#9ecae1", Colocate, Run.WHOLE),
        Arm("full_disagg", "Full Disagg", "#d62728", FullDisagg, Run.PROXIED, in_paper=True),
        Arm(
            "ampd",
            "AMPD (10 %)",
            "#9467bd",
            ConServe,
            Run.DECODERS,
            overcounts=True,
            own_run=False,
            in_paper=True,
        ),
        Arm(
            "ampd_corrected",
            "AMPD, corrected",
            "#c5b0d5",
            ConServe,
            Run.DECODERS,
            overcounts=False,
            own_run=False,
        ),
        Arm(
            "ampd_played",
            "AMPD, really misrouted",
            "#8c564b",
            ConServe,
            None,
            overcounts=False,
        ),
        Arm(
            "conserve_oracle",
            "ConServe",
            "#2ca02c",
            partial(ConServe, _PEAK),
            Run.DECODERS,
            in_paper=True,
        ),
        Arm("conserve", "ConServe, per turn", "#98df8a", ConServe, Run.DECODERS),
        Arm(
            "conserve_oracle_4",
            "ConServe, 4 decode",
            "#ff7f0e",
            partial(ConServe, _PEAK),
            Run.FREE_PREFILL,
        ),
    )
}
"""By name, in the order of tables and pictures."""

MISROUTED_SHARE = 0.10
"""Share of later turns that the paper's AMPD misroutes."""
