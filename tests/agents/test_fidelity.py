"""The fidelity report: what it needs nothing for always, the rest where the files are."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from conserve_gym.agents import fidelity
from conserve_gym.agents.fidelity_check import Check

SHARED = Path(__file__).parents[2].parent / "shared"


def existing(name: str) -> Path | None:
    folder = SHARED / name
    return folder if folder.is_dir() else None


GROUPS = list(fidelity.groups(existing("calibration"), existing("traces")))


@pytest.mark.parametrize(
    ("run", "missing"), [group[1:] for group in GROUPS], ids=[group[0] for group in GROUPS]
)
def test_every_limit_is_kept(run: object, missing: str) -> None:
    if run is None:
        pytest.skip(missing)
    assert callable(run)
    checks = list(run())
    assert checks
    assert [check for check in checks if not check.holds] == []


def test_without_files_the_report_says_what_it_lacks() -> None:
    missing = {name: reason for name, run, reason in fidelity.groups(None, None) if run is None}
    assert missing.keys() == {group[0] for group in GROUPS} - {"physics", "queueing"}
    assert all("=FOLDER" in reason for reason in missing.values())


def test_limits_bind_on_their_side() -> None:
    assert Check("a", 1.0, 1.0, "%", "").holds
    assert not Check("a", 1.1, 1.0, "%", "").holds
    assert not Check("a", 0.9, 1.0, "x", "", at_least=True).holds
    assert Check("a", 99.0, None, "%", "").holds


def test_the_csv_has_a_row_a_check(tmp_path: Path) -> None:
    checks = [Check("one", 1.5, 1.0, "%", "s"), Check("two", 2.0, None, "x", "t")]
    fidelity.write(tmp_path / "fidelity.csv", checks)
    with (tmp_path / "fidelity.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["check"], row["value"], row["limit"], row["holds"]) for row in rows] == [
        ("one", "1.5", "1.0", "False"),
        ("two", "2.0", "", "True"),
    ]
