"""The paper's own draw on its own trace, where that stands beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest
from settings import spec

from conserve_gym.agents.reproduction.arms import ARMS
from conserve_gym.agents.reproduction.cells import Cell, paper_scenario, play
from conserve_gym.agents.reproduction.published import PAPER
from conserve_gym.agents.reproduction.recording import SATURATION, draw
from conserve_gym.agents.reproduction.spec import WorkloadSpec

TRACE = Path(__file__).parents[3].parent / "shared" / "traces" / "conserve_miniswe_trace.csv.gz"
pytestmark = pytest.mark.skipif(
    not TRACE.exists(), reason="the paper's trace is not beside the checkout"
)
WORKLOAD = WorkloadSpec(TRACE, 255, 5)


@pytest.fixture(scope="module")
def at_saturation() -> dict[str, dict[str, float]]:
    """Return the metrics of the paper's arms on the artifact's clock, with the paper's draw."""
    asked = spec(workload=WORKLOAD)
    return {
        name: play(asked, Cell("paper", "300/300", name, "artifact", SATURATION, 42))
        for name, arm in ARMS.items()
        if arm.in_paper
    }


def published(arm: str, metric: str) -> float:
    return PAPER[arm, "300/300", SATURATION, metric].value


def test_the_order_of_the_arms(at_saturation: dict[str, dict[str, float]]) -> None:
    expected = sorted(at_saturation, key=lambda arm: published(arm, "ttfet_p95"))
    assert sorted(at_saturation, key=lambda arm: at_saturation[arm]["ttfet_p95"]) == expected
    assert expected == ["conserve_oracle", "colocate_oracle", "ampd", "full_disagg"]


@pytest.mark.parametrize("metric", ["ttfet_p95", "tbt_p95", "e2e_p95"])
def test_conserve_is_as_fast_as_in_the_paper(
    at_saturation: dict[str, dict[str, float]], metric: str
) -> None:
    ours = at_saturation["conserve_oracle"][metric]
    assert ours == pytest.approx(published("conserve_oracle", metric), rel=0.12)


def test_other_orders_play_the_same_conversations() -> None:
    scenario = paper_scenario(WORKLOAD)
    ours, other = (draw(scenario, SATURATION, seed, redraw=False) for seed in (42, 7))
    assert other.turns != ours.turns
    assert other.turns == tuple(ours.turns[number] for number in other.numbers)
    # The prefiller saturates at what the paper calls the rate.
    assert 254 / ours.starts_s[-1] == pytest.approx(SATURATION, rel=0.02)
