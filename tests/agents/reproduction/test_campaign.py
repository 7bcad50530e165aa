"""Results are kept: what was played is not played again, and nothing of another making is taken."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from settings import beyond, spec

from conserve_gym.agents import campaign as pool_of_cells
from conserve_gym.agents.campaign import RESULTS
from conserve_gym.agents.reproduction import campaign
from conserve_gym.agents.reproduction.campaign import Results
from conserve_gym.agents.reproduction.cells import Cell, cells, play
from conserve_gym.agents.reproduction.spec import ReproductionSpec, SensitivitySpec
from conserve_gym.envs.configuration import ConfigurationError

SETTINGS = {"workload": {"path": None, "conversations": 12}, "scenarios.kv": "twice"}
Played = list[Cell]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    """Play in this process, and write down what."""
    played: Played = []

    def recorded(asked: ReproductionSpec, cell: Cell) -> dict[str, float]:
        played.append(cell)
        return play(asked, cell)

    monkeypatch.setattr(campaign, "play", recorded)
    in_threads(monkeypatch)
    return played


def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def pool(workers: int, **_: object) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(pool_of_cells, "ProcessPoolExecutor", pool)


def run(asked: ReproductionSpec, settings: Mapping[str, Any] = SETTINGS) -> Results:
    return campaign.run(asked, settings, Console(file=StringIO()))


def asked_of(output: Path) -> tuple[ReproductionSpec, ReproductionSpec]:
    """Return a part of a reproduction, and the whole of it."""
    part = spec(output=output)
    return part, spec(
        output=output,
        rates=(1.0, 1.634),
        misrouted_shares=(0.5,),
        scenarios={"kv": beyond()},
        sensitivity=SensitivitySpec(("power",), (2.0, 1.0), 1),
    )


def lines(folder: Path) -> list[str]:
    return (folder / RESULTS).read_text("utf-8").splitlines()


def test_half_and_the_rest_are_the_whole(tmp_path: Path, played: Played) -> None:
    part, whole = asked_of(tmp_path / "twice")
    half = run(part)
    assert set(played) == set(half) == set(cells(part))
    assert len(played) == len(half) == 2 * (8 + 7)
    before = lines(part.output)
    played.clear()
    both = run(whole)
    assert len(played) == len(set(played))
    assert set(played) == set(cells(whole)) - set(cells(part))
    assert lines(part.output)[: len(before)] == before

    played.clear()
    _, at_once = asked_of(tmp_path / "once")
    expected = run(at_once)
    assert len(played) == len(set(cells(whole)))
    assert both == expected
    assert list(both) == list(expected) == list(dict.fromkeys(cells(whole)))

    played.clear()
    assert run(whole) == expected
    assert run(part) == half  # only what is asked for
    assert not played


def test_a_line_that_was_cut_off_is_played_again(tmp_path: Path, played: Played) -> None:
    part, _ = asked_of(tmp_path)
    expected = run(part)
    path = tmp_path / RESULTS
    content = path.read_bytes()
    for cut in (1, 100, len(lines(tmp_path)[-1])):
        played.clear()
        path.write_bytes(content[:-cut])
        assert run(part) == expected
        assert len(played) == 1
        assert path.read_bytes().endswith(b"}\n")
        assert sorted(path.read_bytes().splitlines()) == sorted(content.splitlines())


def test_a_file_with_half_a_line_and_no_more(tmp_path: Path, played: Played) -> None:
    part, _ = asked_of(tmp_path)
    expected = run(part)
    (tmp_path / RESULTS).write_bytes((tmp_path / RESULTS).read_bytes()[:50])
    played.clear()
    assert run(part) == expected
    assert len(played) == len(expected) == len(lines(tmp_path))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"workload": {"path": "trace.csv", "conversations": 12}}, "another workload"),
        ({"workload": {"path": None, "conversations": 13}}, "another workload"),
        ({**SETTINGS, "scenarios.kv": "half"}, "another scenarios.kv"),
    ],
)
def test_a_folder_of_other_settings_is_refused(
    tmp_path: Path, played: Played, settings: Mapping[str, Any], says: str
) -> None:
    part, _ = asked_of(tmp_path)
    run(part)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    played.clear()
    with pytest.raises(ConfigurationError, match=says) as error:
        run(part, settings)
    assert str(tmp_path) in str(error.value)
    assert not played
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_scenarios_may_come_and_go(tmp_path: Path, played: Played) -> None:
    part, _ = asked_of(tmp_path)
    run(part)
    played.clear()
    run(part, {"workload": SETTINGS["workload"], "scenarios.bursty": "a burst"})
    assert not played
    with pytest.raises(ConfigurationError, match=r"another scenarios\.kv"):
        run(part, {**SETTINGS, "scenarios.kv": "half"})  # what has gone is not forgotten


def test_a_folder_of_another_revision_is_refused(
    tmp_path: Path, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, _ = asked_of(tmp_path)
    run(part)
    monkeypatch.setattr(pool_of_cells, "git_revision", lambda: "another")
    with pytest.raises(ConfigurationError, match="another revision"):
        run(part)


def test_a_cell_that_fails_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, _ = asked_of(tmp_path)
    asked = list(cells(part))

    def playing(fails: bool) -> Callable[[ReproductionSpec, Cell], dict[str, float]]:
        def stub(_: ReproductionSpec, cell: Cell) -> dict[str, float]:
            if fails and cell == asked[5]:
                raise ArithmeticError("no number")
            return {"ttfet_p95": float(asked.index(cell)), "tbt_p95": float("nan")}

        return stub

    in_threads(monkeypatch)
    monkeypatch.setattr(campaign, "play", playing(True))
    with pytest.raises(ArithmeticError):
        run(part)
    kept = [json.loads(line) for line in lines(tmp_path)]
    assert {Cell(**one["cell"]) for one in kept} <= set(asked) - {asked[5]}
    monkeypatch.setattr(campaign, "play", playing(False))
    assert [one["ttfet_p95"] for one in run(part).values()] == list(range(len(asked)))


def test_workers_in_processes_of_their_own_play_the_same(tmp_path: Path) -> None:
    asked = spec(output=tmp_path, seeds=(42,))
    assert run(asked) == {cell: play(asked, cell) for cell in cells(asked)}
