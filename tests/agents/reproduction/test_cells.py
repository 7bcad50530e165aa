"""What a reproduction plays, and what each cell is played on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hydra
import pytest
from settings import SPEC, beyond, drawn, spec, tiny

from conserve_gym.agents.evaluation import play as evaluate
from conserve_gym.agents.reproduction import artifact_clock, user_clock
from conserve_gym.agents.reproduction.arms import ARMS
from conserve_gym.agents.reproduction.cells import Cell, cells, play, scaled_setting
from conserve_gym.agents.reproduction.recording import SATURATION, draw
from conserve_gym.agents.reproduction.spec import ReproductionSpec, SensitivitySpec
from conserve_gym.envs.configuration import load_scenario, validated
from conserve_gym.envs.serving.scaled_constants import scaled


def packaged(*overrides: str) -> ReproductionSpec:
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        return validated(ReproductionSpec, hydra.compose("reproduce", list(overrides)))


FULL = list(cells(packaged()))


def test_no_cell_comes_twice() -> None:
    assert len(FULL) == len(set(FULL)) > 5000
    quick = list(cells(packaged("experiment=reproduce_quick")))
    assert len(quick) == len(set(quick)) > 0


def test_every_part_has_its_cells() -> None:
    parts = {part: [c for c in FULL if c.part == part] for part in {c.part for c in FULL}}
    # 3 caps, 6 rates, 10 seeds: 8 arms on the artifact's clock and 7 on the user's.
    assert len(parts["paper"]) == 3 * 6 * 10 * (8 + 7)
    assert {(c.arm, c.clock, c.rate) for c in parts["shares"]} == {("ampd", "artifact", SATURATION)}
    assert {c.variant for c in parts["shares"]} == {"0", "0.05", "0.1", "0.2", "0.3", "0.4", "0.5"}
    assert len(parts["shares"]) == 7 * 10
    assert len(parts["scenarios"]) == 12 * 6 * 6 * 5
    # 6 constants, 5 factors, 6 rates, 5 seeds: 3 arms on each clock.
    assert len(parts["sensitivity"]) == 6 * 5 * 6 * 5 * (3 + 3)


def test_arms_are_on_the_clocks_that_they_exist_on() -> None:
    clocks = {arm: {c.clock for c in FULL if c.arm == arm} for arm in ARMS}
    emulated, real = {"ampd", "ampd_corrected"}, {"ampd_played"}
    for arm in ARMS:
        expected = (
            {"artifact"} if arm in emulated else {"user"} if arm in real else {"artifact", "user"}
        )
        assert clocks[arm] == expected, arm
    assert {c.clock for c in FULL if c.part == "scenarios"} == {"user"}


def test_by_one_a_constant_is_the_papers_cell() -> None:
    asked = spec(sensitivity=SensitivitySpec(("prefill",), (1.0, 2.0), 1))
    found = list(cells(asked))
    paper = {cell for cell in found if cell.part == "paper"}
    by_one = [cell for cell in found if found.count(cell) > 1]
    assert by_one and set(by_one) <= paper
    assert {cell.variant for cell in found} == {"300/300", "prefill 2"}
    assert scaled_setting("decode floor", 1.0) == ("300/300", "paper")
    assert scaled_setting("decode floor", 0.75) == ("decode floor 0.75", "sensitivity")


def test_the_papers_cells() -> None:
    for seed in (42, 0):
        cell = Cell("paper", "300/300", "ampd", "artifact", SATURATION, seed)
        expected = artifact_clock.play(tiny().cluster, ARMS["ampd"], drawn(seed), 0.1)
        assert play(SPEC, cell) == expected
    cell = Cell("paper", "300/200", "ampd_played", "user", SATURATION, 0)
    capped = load_scenario(["cluster=a40_1p3d_capped_decoders"]).cluster
    assert play(SPEC, cell) == user_clock.play(capped, ARMS["ampd_played"], drawn(0), 0.1)


def test_shares() -> None:
    cell = Cell("shares", "0.5", "ampd", "artifact", SATURATION, 42)
    arm = ARMS["ampd"]
    assert play(SPEC, cell) == artifact_clock.play(tiny().cluster, arm, drawn(), 0.5)
    assert play(SPEC, replace(cell, variant="0.1")) == play(
        SPEC, replace(cell, part="paper", variant="300/300")
    )


def test_seeds_draw_orders_alone_unless_told_otherwise() -> None:
    cell = Cell("paper", "300/300", "ampd", "artifact", SATURATION, 3)
    ordered = draw(tiny(), SATURATION, 3, redraw=False)
    expected = artifact_clock.play(tiny().cluster, ARMS["ampd"], ordered, 0.1)
    assert play(spec(redraw=False), cell) == expected != play(SPEC, cell)


def test_a_scaled_constant() -> None:
    cell = Cell("sensitivity", "decode floor 0.75", "conserve", "artifact", SATURATION, 42)
    slower = scaled(tiny().cluster, "decode floor", 0.75)
    assert play(SPEC, cell) == artifact_clock.play(slower, ARMS["conserve"], drawn(), 0.1)


def test_settings_beyond_the_paper() -> None:
    asked = spec(scenarios={"chunks": beyond(), "bursty": replace(beyond(), arrivals="bursty")})
    found = play(asked, Cell("scenarios", "bursty", "conserve", "user", 0.8, 3))
    scenario = load_scenario(
        [
            "workload.conversations=12",
            "arrivals=bursty",
            "arrivals.rate=0.8",
            "cluster.engines.0.token_budget=4096",
        ]
    )
    expected = evaluate(scenario, ARMS["conserve"].policy(), 3).metrics
    assert found == {k: v for k, v in expected.items() if not k.startswith("artifact_")}
    # With recorded arrivals the paper's own draw, on another cluster.
    assert play(
        asked, Cell("scenarios", "chunks", "full_disagg", "user", 1.0, 42)
    ) == user_clock.play(
        scenario.cluster,
        ARMS["full_disagg"],
        draw(tiny(), 1.0, 42, redraw=True),
        0.1,
    )


@pytest.mark.parametrize("path", [None, Path("trace.csv")])
def test_a_scenario_takes_the_papers_conversations_or_its_own(
    path: Path | None, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "conv_id,turn,gap_s,input_tokens,new_tokens,output_tokens\n"
        + "".join(f"c{i},0,,1000,1000,5\n" for i in range(3))
    )
    workload = replace(SPEC.workload, path=trace if path else None, conversations=3)
    own = replace(beyond(), arrivals="poisson", workload="miniswe_heavy_appends")
    asked = spec(workload=workload, scenarios={"chunks": beyond(), "own": own})
    cell = Cell("scenarios", "chunks", "conserve", "user", 1.0, 42)
    moved = [
        play(asked, replace(cell, variant=name))["kv_moved_gb"] / 3 for name in ("chunks", "own")
    ]
    a_prompt_gb = 1000 * 114_688e-9
    assert (moved[0] == pytest.approx(a_prompt_gb)) == (path is not None)
    assert moved[1] > 5 * a_prompt_gb
