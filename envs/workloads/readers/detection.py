"""What the first lines of a file hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def columns(head: Sequence[str]) -> set[str]:
    """Return the columns of a csv file."""
    return {name.strip() for name in head[0].split(",")} if head else set()


def objects(head: Sequence[str]) -> list[dict[str, Any]]:
    """Return the JSON objects among the lines; the last line may be cut, and others broken."""
    found = []
    for line in head:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
