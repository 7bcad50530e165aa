"""WEKA's sessions: turns, sub-agents, gaps, and what is reused."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest

from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.readers import conserve_csv, weka
from conserve_gym.envs.workloads.readers.source import Source

TRACES = Path(__file__).resolve().parents[4].parent / "shared/traces"
SAMPLE = TRACES / "format_samples/weka_trace_0026.json"


def request(t: float, tokens: int, out: int, blocks: list[int], **more: Any) -> dict[str, Any]:
    return {"t": t, "type": "n", "in": tokens, "out": out, "hash_ids": blocks, **more}


def session(requests: list[Any], identifier: str = "s") -> dict[str, Any]:
    return {"id": identifier, "models": ["m"], "block_size": 10, "requests": requests}


TURNS = [
    request(1.0, 25, 5, [1, 2], api_time=2.0, think_time=0.0, input_types=["text"]),
    request(9, 47, 4, [1, 2, 3, 4], think_time=4.5, input_types=["tool_result"], type="s"),
    request(20, 60, 1, [1, 2, 9, 10, 11, 12], api_time=None, input_types=["text", "tool_result"]),
]


def read(tmp_path: Path, *sessions: object, on_error: str = "stop") -> list[Recording]:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in sessions))
    return list(weka.read(Source(path, "skip" if on_error == "skip" else "stop")))


def test_turns_reuse_what_they_share_with_the_one_before(tmp_path: Path) -> None:
    (recording,) = read(tmp_path, session(TURNS))
    assert recording == Recording(
        "s",
        "s",
        recording.arrival_s,
        (
            Turn(25, 25, 5, 0.0, "user", 0.0),
            # Both full blocks of the prompt before are there, so that it is kept with its output.
            Turn(47, 17, 4, 4.5, "tool", 8.0),
            # Rewritten after two blocks. Nobody knows when the turn before ended.
            Turn(60, 40, 1, math.nan, "mixed", 19.0),
        ),
    )
    assert math.isnan(recording.arrival_s)


def test_without_think_time_a_gap_begins_at_the_end_of_the_turn_before(tmp_path: Path) -> None:
    turns = [dict(turn, api_time=2.5) for turn in TURNS]
    del turns[1]["think_time"]
    (recording,) = read(tmp_path, session([*turns, request(21, 60, 1, [1])]))
    assert [turn.gap_s for turn in recording.turns] == [0.0, 5.5, 8.5, 0.0]
    assert recording.turns[3].gap_kind == "unknown"


def test_a_block_counts_after_its_own_predecessors_only(tmp_path: Path) -> None:
    turns = [request(0, 30, 1, [1, 2, 3]), request(1, 20, 1, [4, 2]), request(2, 30, 1, [1, 2, 3])]
    (recording,) = read(tmp_path, session(turns))
    assert [turn.new_tokens for turn in recording.turns] == [30, 20, 9]


def test_sub_agents_are_conversations_with_the_same_root(tmp_path: Path) -> None:
    def agent(requests: list[Any], **more: Any) -> dict[str, Any]:
        return {"type": "subagent", "t": 3.0, "requests": requests, **more}

    inner = agent([request(5, 9, 1, [])], agent_id="deep")
    requests = [
        TURNS[0],
        agent([request(4, 30, 2, [1, 2, 3]), inner], agent_id="x"),
        agent([], agent_id="idle"),
        TURNS[1],
        agent([request(4, 8, 1, [])], agent_id="x"),
    ]
    recordings = read(tmp_path, session(requests), session(TURNS, "other"))
    assert [(one.identifier, one.root, one.parent, len(one.turns)) for one in recordings] == [
        ("s", "s", None, 2),
        ("s/x", "s", "s", 1),
        ("s/x (4)", "s", "s", 1),
        ("s/x/deep", "s", "s/x", 1),
        ("other", "other", None, 3),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "id='': must be a text"),
        ({"id": 7}, "id=7: must be a text"),
        ({"block_size": 0}, r"block_size=0: must be 1 to 2\^53"),
        ({"block_size": None}, "block_size=None: not a whole number"),
        ({"requests": []}, r"requests=\[\]: must be a list of some"),
        ({"requests": {"t": 0}}, "requests={.*}: must be a list"),
        ({"requests": [1]}, r"requests\[0\]=1: not an object"),
        ({"requests": [{"type": "x"}]}, r"requests\[0\]\.type='x': none of n, s, subagent"),
        ({"requests": [{"type": "subagent"}]}, r"requests\[0\]\.requests=None: must be a list"),
        ({"requests": [TURNS[0], request(1, 0, 1, [])]}, r"requests\[1\]\.in=0: must be 1 to"),
        (
            {"requests": [request(1, 9, 0, [])]},
            r"requests\[0\]\.out=0: must be at least 1; empty_output",
        ),
        ({"requests": [request(1, 9, 1, ["a"])]}, r"hash_ids=\['a'\]: not a list of numbers"),
        ({"requests": [request(1, 9, 1, None)]}, "hash_ids=None: not a list"),
        ({"requests": [request(-1, 9, 1, [])]}, r"requests\[0\]\.t=-1: must be finite and at"),
        ({"requests": [TURNS[0], dict(TURNS[1], think_time=-1)]}, "think_time=-1: must be finite"),
        ({"requests": [dict(TURNS[0], api_time="x")]}, "api_time='x': not a number"),
        ({"requests": [dict(TURNS[0], input_types=1)]}, "input_types=1: not a list"),
    ],
)
def test_a_session_that_cannot_be_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    broken = session(TURNS) | change
    with pytest.raises(WorkloadError, match=rf"trace\.jsonl, line 2: .*{message}"):
        read(tmp_path, session(TURNS, "a"), broken, session(TURNS, "b"))
    rest = read(tmp_path, session(TURNS, "a"), broken, session(TURNS, "b"), on_error="skip")
    assert [one.identifier for one in rest] == ["a", "b"]


def test_a_broken_sub_agent_leaves_its_session(tmp_path: Path) -> None:
    broken = {"type": "subagent", "agent_id": "x", "requests": [request(0, 0, 1, [])]}
    (recording,) = read(tmp_path, session([*TURNS, broken]), on_error="skip")
    assert len(recording.turns) == 3


def test_two_sessions_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="line 2: id='s': there is another of that name"):
        read(tmp_path, session(TURNS), session(TURNS))


def test_a_session_may_stand_on_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(session(TURNS), indent=2))
    assert weka.looks_like(path.read_text().splitlines(keepends=True)[:20])
    assert repr(list(weka.read(Source(path)))) == repr(read(tmp_path, session(TURNS)))


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    for broken, why in (("{", "not JSON"), ("[1]", "not an object"), ('{"id": NaN}', "not JSON")):
        path.write_text(f"{broken}\n{json.dumps(session(TURNS))}\n")
        with pytest.raises(WorkloadError, match=f"line 1: line=.*{why}"):
            list(weka.read(Source(path)))
        source = Source(path, "skip")
        assert len(list(weka.read(source))) == source.skipped == 1


@pytest.fixture
def sample() -> dict[str, Any]:
    if not SAMPLE.is_file():
        pytest.skip(f"the sample is not there: {SAMPLE}")
    content: dict[str, Any] = json.loads(SAMPLE.read_text())
    return content


def test_tokens_are_those_of_the_files_own_totals(sample: dict[str, Any]) -> None:
    (recording,) = weka.read(Source(SAMPLE))
    totals = sample["totals"]["parent_tokens"]
    assert sum(turn.input_tokens for turn in recording.turns) == totals["input"]
    assert sum(turn.output_tokens for turn in recording.turns) == totals["output"]


def test_a_session_is_that_of_the_csv_rebuilt_from_it(
    sample: dict[str, Any], tmp_path: Path
) -> None:
    rebuilt = TRACES / "weka_claude_code.csv.gz"
    lines = gzip.decompress(rebuilt.read_bytes()).decode().splitlines()
    path = tmp_path / "one.csv"
    path.write_text("\n".join([lines[0], *(x for x in lines if x.startswith("trace_0026,"))]))
    assert repr(list(weka.read(Source(SAMPLE)))) == repr(list(conserve_csv.read(Source(path))))


def test_files_are_told_by_their_fields() -> None:
    assert weka.looks_like([json.dumps(session(TURNS))])
    for head in ([], ['{"requests": []}'], ['"block_size" "requests"']):
        assert not weka.looks_like(head)
