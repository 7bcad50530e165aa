"""Figures that were fitted draw what they were fitted to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from conserve_gym.envs.workloads import fit
from conserve_gym.envs.workloads.conversation import Turn, WorkloadError
from conserve_gym.envs.workloads.copula import LATENTS, CopulaWorkload
from conserve_gym.envs.workloads.match import differences
from conserve_gym.envs.workloads.samples import Samples

LEVELS = [0.0, 0.25, 0.5, 0.75, 0.95, 1.0]
KNOWN: dict[str, Any] = dict(
    name="known",
    conversations=1500,
    max_turns=None,
    levels=LEVELS,
    turns=[1, 3, 6, 12, 20],
    turns_up_to=[0.2, 0.4, 0.6, 0.9, 1.0],
    first_input_tokens=[[100, 500, 1000, 5000, 9000, 20_000]],
    from_turn=[0, 1],
    output_tokens=[[10, 20, 40, 80, 300, 1000], [5, 50, 100, 200, 900, 2000]],
    appended_tokens=[[1, 20, 70, 300, 2000, 5000]],
    dropped_tokens=[0, 0, 0, 0, 20, 60],
    kinds={
        "tool": {"share": [0.8], "gap_s": [[0, 2, 4, 9, 60, 300]]},
        "user": {"share": [0.2], "gap_s": [[5, 30, 90, 300, 900, 3000]]},
    },
    rewrites={
        "share": [0.05],
        "kind": "mixed",
        "gap_s": [10, 20, 40, 80, 160, 320],
        "kept_share": [0.0, 0.1, 0.2, 0.3, 0.4, 0.45],
        "new_share": [0.1, 0.2, 0.4, 0.6, 0.8, 1.0],
    },
    peak_tokens=None,
    correlations={"output": {"turns": -0.6}, "user_gap": {"first_input": 0.5}},
    persistence={
        "output": {"level": 0.3, "lag_1": 0.3},
        "appended": {"level": 0.2, "lag_1": 0.0},
        "user_gap": {"level": 0.4, "lag_1": 0.0},
        "kind": {"level": 0.5, "lag_1": 0.0},
    },
)


@pytest.fixture(scope="module")
def recorded() -> list[tuple[Turn, ...]]:
    return CopulaWorkload(**KNOWN).draw(np.random.default_rng(0))


@pytest.fixture(scope="module")
def figures(recorded: list[tuple[Turn, ...]]) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "_DRAWN_TURNS", 15_000)
        patch.setattr(fit, "_TABLE_TURNS", 30_000)
        return fit.fit("again", recorded, 200, peaks=False)


def test_draws_match_what_was_fitted(
    recorded: list[tuple[Turn, ...]], figures: dict[str, Any]
) -> None:
    samples = Samples.of(recorded)
    many = CopulaWorkload(**(figures | {"conversations": 6000}))
    drawn = Samples.of(many.draw(np.random.default_rng(1)), samples.kinds)
    for one in differences(samples, drawn):
        if one.statistic == "ks_distance":
            assert one.drawn < (0.03 if one.quantity != "peak_context" else 0.05), one
        elif one.statistic in ("share of variance between conversations", "lag 1"):
            assert one.drawn == pytest.approx(one.recorded, abs=0.08), one
        elif one.statistic == "rank correlation" and "peak" not in one.quantity:
            assert one.drawn == pytest.approx(one.recorded, abs=0.1), one
        elif one.statistic == "share":
            assert one.drawn == pytest.approx(one.recorded, abs=0.02), one


def test_hidden_dependence_is_found_again(figures: dict[str, Any]) -> None:
    assert figures["correlations"]["output"]["turns"] == pytest.approx(-0.6, abs=0.2)
    assert figures["persistence"]["output"]["level"] == pytest.approx(0.3, abs=0.1)
    assert figures["persistence"]["output"]["lag_1"] == pytest.approx(0.3, abs=0.1)
    assert set(figures["correlations"]) == set(LATENTS[1:]) - {"peak"}


def test_a_written_file_is_the_workload(figures: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "again.yaml"
    fit.write(path, figures, ["From nowhere.", "", "More."])
    text = path.read_text()
    assert text.startswith("# From nowhere.\n#\n# More.\n_target_: conserve_gym.")
    workload = instantiate(OmegaConf.load(path), _convert_="all")
    drawn = workload.draw(np.random.default_rng(5))
    assert drawn == CopulaWorkload(**figures).draw(np.random.default_rng(5))
    assert len(drawn) == 200


def test_recordings_that_were_cut_at_a_context_keep_their_peaks() -> None:
    grown = KNOWN | {"correlations": {}, "rewrites": None, "conversations": 600}
    cut = []
    for turns in CopulaWorkload(**grown).draw(np.random.default_rng(3)):
        taken = [turn for turn in turns if turn.input_tokens + turn.output_tokens <= 8000]
        if len(taken) > 1:
            cut.append(tuple(taken))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "_DRAWN_TURNS", 6000)
        patch.setattr(fit, "_TABLE_TURNS", 6000)
        figures = fit.fit("cut", cut, 600, peaks=True)
    samples = Samples.of(cut)
    drawn = Samples.of(CopulaWorkload(**figures).draw(np.random.default_rng(4)), samples.kinds)
    assert drawn.peak.max() <= samples.peak.max()
    for percent in (50, 95):
        expected = np.percentile(samples.peak, percent)
        assert np.percentile(drawn.peak, percent) == pytest.approx(expected, rel=0.1)


def test_one_turn_each_cannot_be_fitted() -> None:
    with pytest.raises(WorkloadError, match="no recording has a second turn"):
        fit.fit("short", [(Turn(5, 5, 5, 0.0),)], 10, peaks=False)


def test_unknown_gaps_become_0_s_and_rare_kinds_have_one_row() -> None:
    one = (Turn(5, 5, 5, 0.0), Turn(15, 5, 5, float("nan"), "tool"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "_DRAWN_TURNS", 100)
        patch.setattr(fit, "_TABLE_TURNS", 100)
        figures = fit.fit("short", [one] * 30, 10, peaks=False)
    assert figures["from_turn"] == [0, 1]
    assert figures["kinds"]["tool"]["gap_s"] == [[0] * len(figures["levels"])]
    assert set(CopulaWorkload(**figures).draw(np.random.default_rng(0))) == {
        (one[0], one[1]._replace(gap_s=0.0))
    }
