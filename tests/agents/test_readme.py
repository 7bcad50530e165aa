"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)


def test_the_environment_example(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    assert "prefill" in capsys.readouterr().out


def test_the_runtime_example(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(BLOCKS) == 2
    exec(compile(BLOCKS[1].replace("runs/quick/policy", str(exported)), "README.md", "exec"), {})
    assert "Placement(prefill_at=" in capsys.readouterr().out
