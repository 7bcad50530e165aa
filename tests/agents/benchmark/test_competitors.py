"""Who plays is named apart, marked, and left out where it cannot play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conserve_gym.agents.benchmark import competitors as module
from conserve_gym.agents.benchmark.competitors import HINDSIGHT, competitors
from conserve_gym.agents.policies import OtherFleetError, resolve
from conserve_gym.envs.configuration import ConfigurationError, load_scenario
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.policy import Policy, Reads

CLUSTERS = {name: load_scenario([f"cluster={name}"]).cluster for name in ("a40_1p3d", "a40_2p2d")}
CLAIMS_A_NAME = """
from conserve_gym.baselines.conserve import ConServe

class Mine(ConServe):
    pass
"""


def test_names_marks_and_what_they_read() -> None:
    plain, tuned, oracle, bound = competitors(
        [
            "colocate",
            {"conserve_offload": {"tokens": 2048}},
            "conserve_oracle",
            {"look_ahead": {"base": "conserve"}},
        ],
        CLUSTERS,
    )
    assert [one.label for one in (plain, tuned, oracle, bound)] == [
        "colocate",
        "conserve_offload(tokens=2048)",
        "conserve_oracle †",
        "look_ahead(conserve) †",
    ]
    assert plain.reads is Reads.BOOKKEEPING and not plain.sees_future
    assert oracle.sees_future and bound.sees_future


SOMETIMES_AN_ORACLE = """
from conserve_gym.baselines.conserve import ConServe
from conserve_gym.deployment import Reservation

class Mine(ConServe):
    def __init__(self, site):
        knows = len(site.prefillers) == 2
        super().__init__(Reservation.ORACLE_PEAK if knows else Reservation.PER_TURN)
"""


def test_who_sees_the_future_on_one_cluster_is_marked_on_all(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(SOMETIMES_AN_ORACLE)
    (mine, _) = competitors([f"{path}:Mine", "conserve"], CLUSTERS)
    assert mine.sees_future


def test_nobody_is_called_like_the_best_in_hindsight(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        CLAIMS_A_NAME.replace(
            "    pass",
            f"    def __init__(self):\n        super().__init__()\n"
            f"        self.name = {HINDSIGHT!r}",
        )
    )
    (mine,) = competitors([f"{path}:Mine"], CLUSTERS)
    assert mine.name == f"{path}:Mine"


@pytest.mark.parametrize(
    "parameters", [{}, {"base": "conserve", "actions": "all"}, {"base": "conserve", "depth": 3}]
)
def test_a_bound_that_cannot_be_is_one_clear_error(parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"look_ahead=.* needs base=POLICY"):
        competitors(["conserve", {"look_ahead": parameters}], CLUSTERS)


def test_two_of_one_name_are_called_by_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CLAIMS_A_NAME)
    rule, mine = competitors(["conserve", f"{path}:Mine"], CLUSTERS)
    assert (rule.name, mine.name) == ("conserve", f"{path}:Mine")
    assert not rule.version and mine.version
    path.write_text(CLAIMS_A_NAME + "\n# changed\n")
    assert competitors([f"{path}:Mine"], CLUSTERS)[0].version != mine.version


def test_who_was_trained_for_another_fleet_is_left_out_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fitting(asked: Any, cluster: ClusterSpec) -> Policy:
        if asked == "random" and cluster.name == "a40_2p2d":
            raise OtherFleetError("policy 'random' was trained for engines of another cluster")
        return resolve(asked, cluster)

    monkeypatch.setattr(module, "resolve", fitting)
    colocate, trained = competitors(["colocate", "random"], CLUSTERS)
    assert not colocate.left_out
    assert trained.left_out == {
        "a40_2p2d": "policy 'random' was trained for engines of another cluster"
    }
    with pytest.raises(ConfigurationError, match=r"clusters=a40_2p2d: nobody .* another cluster"):
        competitors(["random"], CLUSTERS)


def test_somebody_has_to_be_ranked() -> None:
    with pytest.raises(ConfigurationError, match="all policies see the future"):
        competitors(["conserve_oracle"], CLUSTERS)


def test_one_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="'nobody' is neither"):
        competitors(["colocate", "nobody"], CLUSTERS)
