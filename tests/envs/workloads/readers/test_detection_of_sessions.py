"""Each sample looks like its own format, and like no other of these."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path

import pytest

from conserve_gym.envs.workloads.readers import (
    aiperf,
    bailian,
    llmservingsim,
    mooncake,
    tracelab,
)

TRACES = Path(__file__).resolve().parents[4].parent / "shared/traces"
READERS = (mooncake, aiperf, tracelab, bailian, llmservingsim)


def formats(head: list[str]) -> list[str]:
    return [reader.FORMAT for reader in READERS if reader.looks_like(head)]


@pytest.mark.skipif(not TRACES.is_dir(), reason="needs shared/traces beside the checkout")
def test_samples() -> None:
    for path in (TRACES / "format_samples").iterdir():
        with path.open() as file:
            found = formats(list(islice(file, 20)))
        ours = [reader.FORMAT for reader in READERS if path.name.startswith(reader.FORMAT)]
        assert found == ours, path.name
    for path in TRACES.glob("*.csv.gz"):
        with gzip.open(path, "rt") as file:
            assert formats(list(islice(file, 20))) == [], path.name


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1]}, ["mooncake"]),
        ({"input_length": 1, "output_length": 1, "hash_ids": [1], "session_id": "a"}, ["aiperf"]),
        ({"session_id": "a", "messages": [], "output_length": 1}, ["aiperf"]),
        ({"session_id": "a", "turns": []}, ["aiperf"]),
        ({"session_id": "a", "sub_requests": []}, ["llmservingsim"]),
        ({"chat_id": 1, "parent_chat_id": -1, "input_length": 1, "hash_ids": []}, ["bailian"]),
        ({"id": "x", "requests": [], "models": []}, []),
        ({"anything": 1}, []),
    ],
)
def test_rows(row: dict[str, object], expected: list[str]) -> None:
    line = json.dumps(row)
    assert formats([line]) == expected
    assert formats([line, line[:-3]]) == expected  # the head may end within a line


@pytest.mark.parametrize("head", [[], [""], ["{"], ["[1]"], ["\x00\x00"], ["a,b,c"]])
def test_nothing(head: list[str]) -> None:
    assert formats(head) == []
