"""Conversations rebuilt from chained block hashes: who continues whom, and who does not."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.readers import mooncake
from conserve_gym.envs.workloads.readers.source import Source

TRACES = Path(__file__).resolve().parents[4].parent / "shared/traces"
SAMPLE = TRACES / "format_samples/mooncake_conversation_head150.jsonl"
REBUILT = TRACES / "mooncake_conversation_rebuilt.csv.gz"

needs_traces = pytest.mark.skipif(
    not TRACES.is_dir(), reason="needs shared/traces beside the checkout"
)

Request = tuple[float, int, int, Sequence[int]]


def write(tmp_path: Path, requests: Sequence[Request]) -> Path:
    """Write requests of (seconds, input, output, hashes)."""
    path = tmp_path / "trace.jsonl"
    with path.open("w") as file:
        for time_s, tokens, output, ids in requests:
            row = {"timestamp": round(time_s * 1000), "input_length": tokens}
            row |= {"output_length": output, "hash_ids": list(ids)}
            file.write(json.dumps(row) + "\n")
    return path


def read(path: Path, on_error: Any = "stop", **options: Any) -> list[Recording]:
    return list(mooncake.read(Source(path, on_error), **options))


def shapes(recordings: list[Recording]) -> list[tuple[int, ...]]:
    return [tuple(turn.input_tokens for turn in one.turns) for one in recordings]


FIRST = (0.0, 1300, 200, [0, 1, 2])  # two full blocks, of which one is everybody's


def test_a_request_that_extends_a_prompt_continues_it(tmp_path: Path) -> None:
    path = write(tmp_path, [FIRST, (60.0, 1600, 20, [0, 1, 3, 4]), (90.0, 700, 10, [0, 9])])
    one, other = read(path)
    assert one.turns == (
        Turn(1300, 1300, 200, 0.0, "unknown", 0.0),
        Turn(1600, 100, 20, 60.0 - 0.5 - 200 * 0.03, "user", 60.0),
    )
    assert other.turns == (Turn(700, 700, 10, 0.0, "unknown", 0.0),)
    assert (one.identifier, one.root, one.arrival_s) == ("line 1", "line 1", 0.0)
    assert (other.identifier, other.root, other.arrival_s) == ("line 3", "line 3", 90.0)


@pytest.mark.parametrize(
    ("tokens", "links"), [(1516, 1), (1501, 1), (1500, 1), (1484, 1), (1483, 0)]
)
def test_a_prompt_has_room_for_the_one_before_and_its_output(
    tmp_path: Path, tokens: int, links: int
) -> None:
    path = write(tmp_path, [FIRST, (60.0, tokens, 20, [0, 1, 3])])
    recordings = read(path)
    assert len(recordings) == 2 - links
    assert recordings[-1].turns[-1].new_tokens == (max(tokens - 1500, 1) if links else tokens)


def test_blocks_that_are_everybodys_link_nobody(tmp_path: Path) -> None:
    requests = [(0.0, 600, 10, [0, 1]), (9.0, 2000, 10, [0, 2, 3, 4])]
    assert len(read(write(tmp_path, requests))) == 2
    assert len(read(write(tmp_path, requests), shared_blocks=0)) == 1
    # A system prompt of five blocks: two strangers may be taken for one at first, never more.
    ids = list(range(5))
    requests = []
    for number in range(40):
        requests.append((2.0 * number, 5 * 512 + 9, 10, [*ids, 100 + 2 * number]))
        requests.append(
            (2.0 * number + 1, 7 * 512, 10, [*ids, 1000 + 2 * number, 1001 + 2 * number])
        )
    links = mooncake.Links()
    assert len(read(write(tmp_path, requests), links=links)) >= 78
    assert links.strong + links.weak <= 2
    assert links.refused >= 30
    assert len(read(write(tmp_path, requests), shared_blocks=5)) == 80


def test_the_longest_match_wins_then_the_latest(tmp_path: Path) -> None:
    long = (1.0, 1900, 10, [0, 1, 2, 3])
    path = write(tmp_path, [FIRST, long, (60.0, 2400, 9, [0, 1, 2, 5, 6])])
    assert shapes(read(path)) == [(1300, 1900, 2400)]
    twins = [FIRST, (1.0, 1310, 200, [0, 1, 7]), (60.0, 1600, 20, [0, 1, 3, 4])]
    assert shapes(read(write(tmp_path, twins))) == [(1300,), (1310, 1600)]


def test_a_request_is_continued_once_and_branches_keep_its_root(tmp_path: Path) -> None:
    requests = [
        FIRST,
        (10.0, 2100, 200, [0, 1, 3, 4, 9]),
        (20.0, 1710, 20, [0, 1, 3, 5]),
        (30.0, 2600, 20, [0, 1, 3, 5, 6, 7]),
        (40.0, 2590, 20, [0, 1, 3, 5, 6, 8]),
    ]
    recordings = read(write(tmp_path, requests))
    assert shapes(recordings) == [(1300, 2100), (1710, 2600), (2590,)]
    assert [one.root for one in recordings] == ["line 1", "line 1", "line 1"]
    assert [one.parent for one in recordings] == [None, "line 1", "line 3"]


def test_the_sureness_of_links_is_reported(tmp_path: Path) -> None:
    links = mooncake.Links()
    requests = [
        (0.0, 2000, 100, [0, 1, 2, 3]),
        (9.0, 2200, 100, [0, 1, 2, 4, 5]),  # strong, by 3
        (19.0, 2290, 100, [0, 1, 2, 4, 6]),  # short, by 4
        (20.0, 1100, 100, [0, 20, 21]),
        (30.0, 1300, 100, [0, 20, 22]),  # by one block that is its own
        (40.0, 2000, 10, [0, 30, 31, 32]),
        (41.0, 1990, 10, [0, 30, 31, 33]),
        (50.0, 2100, 10, [0, 30, 31, 34, 35]),  # one of two
    ]
    read(write(tmp_path, requests), links=links)
    assert (links.strong, links.weak) == (1, 3)
    assert (links.short, links.thin, links.ambiguous) == (1, 1, 1)
    assert links.blocks == {3: 2, 4: 1, 2: 1}
    assert str(links).startswith("4 links between requests, 25.0% strong")


def test_gaps_are_what_an_assumed_service_leaves(tmp_path: Path) -> None:
    path = write(tmp_path, [FIRST, (60.0, 1600, 20, [0, 1, 3, 4])])

    def gap(**options: Any) -> float:
        return read(path, **options)[0].turns[1].gap_s

    assert gap(service_s=2.0, token_s=0.01) == pytest.approx(56.0)
    assert gap(service_s=59.0, token_s=1.0) == 0.0
    assert gap(service_s=None) != gap(service_s=None)  # NaN
    assert read(path, gap_kind="tool")[0].turns[1].gap_kind == "tool"


@needs_traces
def test_the_head_of_the_real_trace() -> None:
    links = mooncake.Links()
    recordings = read(SAMPLE, links=links)
    rows = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    assert (len(recordings), len(rows), links.strong, links.weak) == (147, 150, 3, 0)
    turns = [turn for one in recordings for turn in one.turns]
    for field, name in (("input_tokens", "input_length"), ("output_tokens", "output_length")):
        assert sum(getattr(turn, field) for turn in turns) == sum(row[name] for row in rows)
    # The same three links, by the same hashes, were found when the whole trace was rebuilt.
    linked = {one.identifier: one.turns[1] for one in recordings if len(one.turns) > 1}
    assert linked == {
        "line 67": Turn(3024, 7, 111, pytest.approx(15.52), "user", 27.0),
        "line 11": Turn(49948, 36333, 173, pytest.approx(42.37), "user", 45.0),
        "line 2": Turn(7833, 21, 374, pytest.approx(32.8), "user", 48.0),
    }


@needs_traces
def test_the_rebuilt_trace_is_rebuilt_again_from_hashes(tmp_path: Path) -> None:
    with gzip.open(REBUILT, "rt") as file:
        rows = list(csv.DictReader(file))
    rows.sort(key=lambda row: int(row["extra"][2:]))
    requests, last = [], dict[str, tuple[int, list[int]]]()
    fresh = iter(range(1, 10**9))
    for row in rows:
        tokens = int(row["input_tokens"])
        full, ids = last.get(row["conv_id"], (1, [0]))
        ids = ids[:full]
        while len(ids) < -(-tokens // 512):
            ids.append(next(fresh))
        last[row["conv_id"]] = tokens // 512, ids
        requests.append((float(row["arrival_s"]), tokens, int(row["output_tokens"]), ids))
    links = mooncake.Links()
    recordings = read(write(tmp_path, requests), links=links)
    assert len(recordings) == 5508
    assert sum(len(one.turns) for one in recordings) == 8411
    assert links.strong + links.weak == 2903
    assert links.short == 158
    conversations: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        conversations.setdefault(row["conv_id"], []).append(row)
    for one, wanted in zip(recordings, conversations.values(), strict=True):
        lengths = [(turn.input_tokens, turn.new_tokens, turn.output_tokens) for turn in one.turns]
        names = ("input_tokens", "new_tokens", "output_tokens")
        assert lengths == [tuple(int(row[name]) for name in names) for row in wanted]
        gaps = [float(row["gap_s"]) for row in wanted]
        # Recorded in whole milliseconds here, and to 10 of them there.
        assert [turn.gap_s for turn in one.turns] == pytest.approx(gaps, abs=0.011)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timestamp": -1}, "timestamp=-1: must be finite and at least 0"),
        ({"timestamp": None}, "timestamp=None: not a number"),
        ({"timestamp": 1}, "timestamp=1: before that of an earlier row, 5000"),
        ({"input_length": 0}, "input_length=0: must be 1 to"),
        ({"input_length": "many"}, "input_length='many': not a whole number"),
        ({"output_length": 0}, "output_length=0: must be at least 1"),
        ({"output_length": 2.5}, "output_length=2.5: not a whole number"),
        ({"hash_ids": [0, 1, 2]}, "hash_ids='3 of them': a prompt of 600 tokens has 2 blocks"),
        ({"hash_ids": [0, "1"]}, "hash_ids=.*: not a list of whole numbers"),
        ({"hash_ids": [0, True]}, "hash_ids=.*: not a list of whole numbers"),
        ({"hash_ids": [0, -1]}, "hash_ids=.*: not a list of whole numbers"),
        ({"hash_ids": None}, "hash_ids='None': not a list"),
    ],
)
def test_rows_that_cannot_be_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    good = {"timestamp": 5000, "input_length": 600, "output_length": 10, "hash_ids": [0, 1]}
    path = tmp_path / "trace.jsonl"
    rows = [good, good | changes, good | {"hash_ids": [0, 5]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(WorkloadError, match=rf"{re.escape(str(path))}, line 2: {message}"):
        read(path)
    source = Source(path, "skip")
    assert [one.identifier for one in mooncake.read(source)] == ["line 1", "line 3"]
    assert source.skipped == 1
