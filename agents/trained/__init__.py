"""Policies that come trained, as exported: their names, and where they are."""

from __future__ import annotations

from pathlib import Path

TRAINED: dict[str, Path] = {path.stem: path for path in Path(__file__).parent.glob("*.zip")}
"""Path of each by its name."""


def path_of(asked: str) -> Path:
    """Return where a policy is that was asked for by name or by path."""
    return TRAINED.get(asked, Path(asked))
