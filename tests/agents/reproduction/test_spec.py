"""What a reproduction refuses to play."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from settings import WORKLOAD

from conserve_gym.agents.reproduction.cells import paper_scenario
from conserve_gym.agents.reproduction.spec import ReproductionSpec
from conserve_gym.envs.configuration import ConfigurationError, validated
from conserve_gym.envs.workloads.conversation import WorkloadError


def packaged(*overrides: str) -> ReproductionSpec:
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        return validated(ReproductionSpec, hydra.compose("reproduce", list(overrides)))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["caps=[100/100]"], "caps: '100/100' is none of 300/300, 300/200, 200/200"),
        (["caps=[]"], "caps=[]"),
        (["caps=[300/200]"], "300/300"),
        (["caps=[300/300,300/300]"], "names one twice"),
        (["seeds=[1,1]"], "seeds=[1, 1] names one twice"),
        (["seeds=[]"], "seeds=[]"),
        (["seeds=[-1]"], "seeds.0=-1"),
        (["seeds=5"], "seeds=5"),
        (["rates=[]"], "rates=[]"),
        (["rates=[1.0,1.0]"], "names one twice"),
        (["rates=[1.0,0]"], "rates.1=0"),
        (["misrouted_shares=[1.5]"], "misrouted_shares.0=1.5"),
        (["sensitivity.constants=[foo]"], "sensitivity.constants.0='foo'"),
        (["sensitivity.factors=[0.0]"], "sensitivity.factors.0=0.0"),
        (["sensitivity.seeds=0"], "sensitivity.seeds=0"),
        (["workers=0"], "workers=0"),
        (["workload.conversations=0"], "workload.conversations=0"),
        (["+scenarios.bursty.cap=1"], "scenarios.bursty.cap=1"),
        (["scenarios.bursty.rates=[]"], "scenarios.bursty.rates=[]"),
    ],
)
def test_wrong_values_are_named(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        packaged(*overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_trace_that_is_not_there() -> None:
    with pytest.raises(WorkloadError, match=r"absent\.csv"):
        paper_scenario(type(WORKLOAD)(Path("absent.csv"), 12, 5))


def test_scenarios_can_be_left_out() -> None:
    assert packaged("~scenarios", "+scenarios={}").scenarios == {}
    assert "bursty" not in packaged("~scenarios.bursty").scenarios
