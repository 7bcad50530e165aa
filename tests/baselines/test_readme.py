"""The table of baselines says what the registry says."""

from __future__ import annotations

from pathlib import Path

from conserve_gym.baselines.registry import BASELINES

README = Path(__file__).parents[2] / "baselines" / "README.md"


def test_the_table_is_that_of_the_registry() -> None:
    rows = [line.strip("| ").split(" | ") for line in README.read_text().splitlines()]
    table = {row[0]: row[2:] for row in rows if len(row) == 5 and row[0] != "name"}
    assert table == {
        f"`{name}`": [
            str(baseline.reads),
            ", ".join(f"`{key}` {one.default}" for key, one in baseline.parameters.items()) or "-",
            baseline.source,
        ]
        for name, baseline in BASELINES.items()
    }
