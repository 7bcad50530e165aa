"""Bailian's requests that name the one they follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.readers import bailian
from conserve_gym.envs.workloads.readers.source import Source

SAMPLE = (
    Path(__file__).resolve().parents[4].parent
    / "shared/traces/format_samples/bailian_readme_example.jsonl"
)


def request(
    chat: int, parent: int, turn: int, time_s: float, tokens: int, output: int = 10, **more: Any
) -> dict[str, Any]:
    row = {"chat_id": chat, "parent_chat_id": parent, "turn": turn, "timestamp": time_s}
    row |= {"input_length": tokens, "output_length": output, "type": "text", "hash_ids": []}
    return row | more


def write(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def read(path: Path, on_error: Any = "stop", **options: Any) -> list[Recording]:
    return list(bailian.read(Source(path, on_error), **options))


TREE = [
    request(1, -1, 1, 0.0, 100),
    request(2, -1, 1, 1.0, 50),
    request(3, 1, 2, 20.0, 130),
    request(4, 1, 2, 30.0, 140),  # a branch
    request(5, 4, 3, 60.0, 200),
    request(6, 3, 3, 61.0, 180),
]


def test_links_make_chains_and_branches_keep_the_root(tmp_path: Path) -> None:
    one, two, branch = read(write(tmp_path, TREE))
    assert one == Recording(
        "1",
        "1",
        0.0,
        (
            Turn(100, 100, 10, 0.0, "unknown", 0.0),
            Turn(130, 20, 10, 20.0 - 0.5 - 0.3, "user", 20.0),
            Turn(180, 40, 10, pytest.approx(41.0 - 0.8), "user", 61.0),
        ),
    )
    assert (two.identifier, two.root, len(two.turns)) == ("2", "2", 1)
    assert (branch.identifier, branch.root, branch.arrival_s) == ("4", "1", 30.0)
    assert [turn.new_tokens for turn in branch.turns] == [140, 50]
    twice = read(write(tmp_path, [*TREE, request(7, 4, 3, 70.0, 200)]))[-1]
    assert [one.parent for one in (one, two, branch, twice)] == [None, None, "1", "4"]
    assert twice.root == "1"


def test_gaps_may_stay_unknown(tmp_path: Path) -> None:
    one, _, _ = read(write(tmp_path, TREE), service_s=None, gap_kind="tool")
    assert one.turns[1].gap_s != one.turns[1].gap_s  # NaN
    assert one.turns[1].gap_kind == "tool"


@pytest.mark.parametrize(
    ("tokens", "ids", "new"),
    [
        (64, [1, 2, 3, 4], 14),  # goes on after prompt and output, 50 tokens
        (64, [1, 2, 9, 4], 14),  # the block that the prompt had not filled differs, of course
        (64, [1, 8, 9, 4], 48),  # edited after the first block
        (64, [7, 8, 9, 4], 64),
        (32, [1, 2], 32),  # cut to two blocks: the lengths alone say that it was rewritten
        (20, [1, 9], 4),
        (64, [7], 14),  # hashes left out: by the lengths
    ],
)
def test_what_a_prompt_reuses(tmp_path: Path, tokens: int, ids: list[int], new: int) -> None:
    first = request(1, -1, 1, 0.0, 40, hash_ids=[1, 2, 3])
    path = write(tmp_path, [first, request(2, 1, 2, 9.0, tokens, hash_ids=ids)])
    assert read(path)[0].turns[1].new_tokens == new


@pytest.mark.skipif(not SAMPLE.is_file(), reason="needs shared/traces beside the checkout")
def test_the_sample_adds_up() -> None:
    (one,) = read(SAMPLE)
    rows = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    assert (one.identifier, one.arrival_s) == ("159", 61.114)
    assert [turn.input_tokens for turn in one.turns] == [row["input_length"] for row in rows]
    assert [turn.output_tokens for turn in one.turns] == [row["output_length"] for row in rows]
    # The second prompt is shorter than the first, and the hashes of the example are cut.
    assert one.turns[1].new_tokens == 400


@pytest.mark.parametrize(
    ("row", "message", "left"),
    [
        (request(3, 9, 2, 20.0, 130), "parent_chat_id='9': did not come before", ["1", "2"]),
        (request(3, 3, 2, 20.0, 130), "parent_chat_id='3': did not come before", ["1", "2"]),
        (request(2, 1, 2, 20.0, 130), "chat_id='2': came before", []),
        (request(3, 1, 3, 20.0, 130), "turn=3: expected 2", ["2"]),
        (request(3, -1, 2, 20.0, 130), "turn=2: expected 1", ["1", "2"]),
        (request(3, 1, 2, -0.5, 130), "timestamp=-0.5: must be finite", ["2"]),
        (request(3, 2, 2, 0.5, 130), "timestamp=0.5: before that of the request", ["1"]),
        (request(3, 1, 2, 20.0, 0), "input_length=0: must be 1 to", ["2"]),
        (request(3, 1, 2, 20.0, 130, 0), "output_length=0: must be at least 1", ["2"]),
        (request(3, 1, 2, 20.0, 130, hash_ids=["1"]), "hash_ids=.*: not a list of whole", ["2"]),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_are_named_and_their_conversations_left_out(
    tmp_path: Path, row: dict[str, Any], message: str, left: list[str]
) -> None:
    path = write(tmp_path, [*TREE[:2], row, TREE[3], TREE[4]])
    with pytest.raises(WorkloadError, match=f"line 3: {message}"):
        read(path)
    source = Source(path, "skip")
    assert [one.identifier for one in bailian.read(source)] == left
    assert source.skipped == (1 if left else 2)  # the second of a name, and what it follows


def test_a_bad_branch_leaves_what_it_branched_off(tmp_path: Path) -> None:
    path = write(tmp_path, [*TREE[:3], TREE[3] | {"output_length": 0}, *TREE[4:]])
    source = Source(path, "skip")
    assert [len(one.turns) for one in bailian.read(source)] == [3, 1]
    assert source.skipped == 1


@pytest.mark.parametrize("line", ['{"chat_id": 3', '{"parent_chat_id": 1}', '{"chat_id": 3}', "7"])
def test_a_row_of_nobody_stops_the_reading(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{json.dumps(TREE[0])}\n{line}\n")
    with pytest.raises(WorkloadError, match="line 2: "):
        read(path, "skip")
