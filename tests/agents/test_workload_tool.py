"""Recordings are looked at, converted and fitted from a configuration."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from conserve_gym.agents import workload_match
from conserve_gym.agents.workload_tool import run
from conserve_gym.envs.configuration import ConfigurationError, load_scenario
from conserve_gym.envs.workloads import fit
from conserve_gym.envs.workloads.conversation import WorkloadError
from conserve_gym.envs.workloads.recorded import RecordedWorkload

HEAD = "conv_id,turn,gap_s,gap_kind,input_tokens,new_tokens,output_tokens"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 60 conversations with 1 to 6 turns, one of which has a bad row."""
    rng = np.random.default_rng(0)
    lines = [HEAD]
    for number in range(60):
        held = 0
        for turn in range(1 + number % 6):
            new, output = (int(value) for value in rng.integers(1, 400, 2))
            gap = f"{rng.integers(1, 50)},{'user' if turn % 2 else 'tool'}" if turn else ","
            lines.append(f"c{number},{turn},{gap},{held + new},{new},{output}")
            held += new + output
    lines.append("broken,0,,,10,20,30")
    path = tmp_path_factory.mktemp("recorded") / "trace.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return the function that runs the tool and returns what it says."""

    def call(*overrides: str) -> str:
        run(config(*overrides), Console(width=150))
        return capsys.readouterr().out

    return call


def config(*overrides: str) -> DictConfig:
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        composed = hydra.compose("workload_tool", list(overrides))
    return composed


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_profile_is_said_and_written(
    trace: Path, told: Callable[..., str], tmp_path: Path
) -> None:
    output = tmp_path / "here" / "too"
    said = told("do=profile", f"path={trace}", "on_error=skip", f"output={output}", "max_turns=3")
    assert "60 conversations, 150 turns" in said
    assert "left out because of bad rows: 1 conversations" in said
    assert "line 212: new_tokens=20" in said
    assert "max_turns=3" in said
    assert "a lone NVIDIA A40" in said
    by_name = {row["statistic"]: float(row["value"]) for row in rows(output / "profile.csv")}
    assert by_name["turns_p50"] == 3.0
    written = OmegaConf.load(output / "profile.yaml")
    assert isinstance(written, DictConfig)
    assert written.statistics.turns_p50 == 3.0
    assert written.skipped_conversations == 1
    assert (output / "profile.png").stat().st_size > 1000


def test_a_conversion_keeps_everything(
    trace: Path, told: Callable[..., str], tmp_path: Path
) -> None:
    output = tmp_path / "new" / "again.csv.gz"
    said = told("do=convert", f"path={trace}", "on_error=skip", f"output={output}")
    assert "60 conversations, 210 turns" in said

    def turns(path: Path) -> Any:
        return RecordedWorkload(path, on_error="skip").draw(np.random.default_rng(0))

    assert turns(output) == turns(trace)


def test_a_fit_is_played_and_used(
    trace: Path, told: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "_DRAWN_TURNS", 1000)
    monkeypatch.setattr(fit, "_TABLE_TURNS", 1000)
    monkeypatch.setattr("conserve_gym.agents.workload_tool._DRAWN_TURNS", 5000)
    said = told(
        "do=fit",
        f"path={trace}",
        "on_error=skip",
        "name=mine",
        "source='Made by hand; no licence.'",
        "episode=40",
        "rates=[1,2]",
        "seeds=2",
        "transforms=[{cap_gaps: {tool: 20}}]",
        f"output={tmp_path}",
    )
    assert f"--config-dir {tmp_path} workload=mine" in said
    assert "p95 TTFET" in said
    match = rows(tmp_path / "match.csv")
    assert {row["quantity"] for row in match} >= {"turns", "gap_s", "rewriting turns", "tool gaps"}
    played = [row for row in match if row["quantity"].startswith("p95 normalised TTFET at")]
    assert [row["quantity"].split()[4] for row in played] == ["1", "2"]
    assert all(float(row["recorded"]) >= 1.0 for row in played)
    assert (tmp_path / "match.png").stat().st_size > 1000
    text = (tmp_path / "workload" / "mine.yaml").read_text()
    assert text.startswith("# Made by hand; no licence.\n#\n# Figures of 60 conversations and 210")
    assert "# Taken: gaps capped (tool 20 s)." in text

    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        workload = hydra.utils.instantiate(hydra.compose("workload/mine").workload, _convert_="all")
    drawn = workload.draw(np.random.default_rng(0))
    assert len(drawn) == 40
    assert max(turn.gap_s for turns in drawn for turn in turns if turn.gap_kind == "tool") <= 20.0


def test_recordings_against_themselves_differ_only_by_their_order(trace: Path) -> None:
    scenario = load_scenario()
    recorded = RecordedWorkload(trace, on_error="skip")
    turns = recorded.draw(np.random.default_rng(0))
    load = workload_match.play_both(scenario.cluster, turns, recorded, 60, 0.5, 3)
    assert load.difference.error_pct == pytest.approx(0.0, abs=15.0)
    assert load.recorded.mean > 1.0


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["do=look"], ConfigurationError, "do='look'"),
        (["seeds=1"], ConfigurationError, "seeds=1"),
        (["rates=[0]"], ConfigurationError, r"rates\.0=0"),
        (["format=wrong"], WorkloadError, "format=wrong"),
        ([], WorkloadError, "line 212: new_tokens"),
        (["path=none.csv"], WorkloadError, "none.csv: no such file"),
        (["transforms=[{cap_gap: {}}]"], WorkloadError, "^transforms.0='cap_gap' is none of"),
        (
            ["on_error=skip", "transforms=[{first_input: {least: 9999}}]"],
            WorkloadError,
            "^transforms: first prompts from 9,999 tokens: no conversation is left",
        ),
        (["do=convert", "on_error=skip", "output=a.txt"], WorkloadError, "a.txt: must end in"),
        (["do=fit"], ConfigurationError, "source is needed"),
        (["do=fit", "source=x"], ConfigurationError, "name=None is no name"),
        (["do=fit", "source=x", "name=miniswe"], ConfigurationError, "workload of this project"),
        (["do=fit", "source=x", "name=a", "on_error=skip", "max_turns=1"], WorkloadError, "second"),
    ],
)
def test_what_cannot_be_done_is_said(
    overrides: list[str],
    error: type[Exception],
    message: str,
    trace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["do=profile", f"path={trace}", "output=out", *overrides]
    latest = {one.partition("=")[0]: one for one in given}
    with pytest.raises(error, match=message):
        run(config(*latest.values()), Console())


def test_messages_name_the_keys_of_this_command(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(f"{HEAD}\na,0,,,10,10,0\n")
    with pytest.raises(WorkloadError, match="; empty_output_tokens says what to take for it"):
        run(config("do=profile", f"path={path}", f"output={tmp_path}"), Console())
    path.write_text('{"session_id": "a", "input_length": 5, "output_length": 5}')
    with pytest.raises(WorkloadError, match=r" reader_options\.input_is_incremental=None: "):
        run(config("do=profile", f"path={path}", f"output={tmp_path}"), Console())


def test_rebuilt_conversations_say_how_sure_they_are(
    told: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    row = '{{"timestamp": {}, "input_length": {}, "output_length": 9, "hash_ids": [0, {}]}}'
    rows = row.format(0, 1600, "1, 2, 3"), row.format(9000, 2000, "1, 2, 4")
    path.write_text("\n".join(rows))
    said = told("do=profile", f"path={path}", f"output={tmp_path}")
    assert "1 links between requests, 100.0% strong" in said
    written = OmegaConf.load(tmp_path / "profile.yaml")
    assert isinstance(written, DictConfig)
    assert written.notes[0].startswith("1 links")
