"""Files broken at random: each gives conversations that can be, or one error in one line."""

from __future__ import annotations

import gzip
import io
import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from mutations import attempt, mutated

from conserve_gym.envs.workloads.readers.registry import READERS, detect, open_recordings
from conserve_gym.envs.workloads.readers.source import Source

TRACES = Path(__file__).resolve().parents[4].parent / "shared/traces"


class Case(NamedTuple):
    """A file that a reader reads, and how many turns its text has by a plain count."""

    format: str
    lines: list[str]
    turns: Callable[[str], int]


def head(name: str, lines: int, root: str = "") -> list[str]:
    """Return the head of a file and the first rows after it, of one root only."""
    path = TRACES / name
    if not path.is_file():
        return []
    content = path.read_bytes()
    text = gzip.decompress(content) if name.endswith(".gz") else content
    rows = text.decode().splitlines()
    return [rows[0], *[one for one in rows[1:] if one.startswith(root)][: lines - 1]]


def session(name: str, *agents: str) -> str:
    """Return a small session with some sub-agents."""
    sent = {"model": "m", "api_time": 1.5, "think_time": 2.0, "stop": "", "input_types": ["text"]}
    requests: list[dict[str, object]] = [
        {"t": 0.0, "type": "n", "in": 130, "out": 20, "hash_ids": [1, 2], **sent},
        {"t": 9, "type": "s", "in": 200, "out": 3, "hash_ids": [1, 2, 3], **sent},
    ]
    entries: list[dict[str, object]] = [
        {"type": "subagent", "t": 3, "agent_id": agent, "requests": requests[:1]}
        for agent in agents
    ]
    return json.dumps({"id": name, "block_size": 64, "requests": requests + entries})


def requests(text: str) -> int:
    """Return how many requests sessions have, those of their sub-agents among them."""

    def count(entry: dict[str, object]) -> int:
        found = entry["requests"]
        assert isinstance(found, list)
        return sum(count(one) if one["type"] == "subagent" else 1 for one in found)

    total, text = 0, text.strip()
    while text:
        one, end = json.JSONDecoder().raw_decode(text)
        total += count(one)
        text = text[end:].strip()
    return total


def data_rows(text: str) -> int:
    """Return how many lines there are but blank ones and heads."""
    lines = [line.lstrip().lower() for line in io.StringIO(text, newline="")]
    return sum(bool(line) and not line.startswith(("conv_id", "timestamp", "arrival_s"))
               for line in lines)  # fmt: skip


BURSTGPT = [
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type",
    "100,a,10,GPT-4,50,20,70,Conversation log",
    "105.0,b,3,ChatGPT,30,5,35,API log",
    "107,,1,ChatGPT,60,1,61,API log",
    "112,a,,GPT-4,75,2,77,Conversation log",
    "200,a,5,GPT-4,60,10,70,Conversation log",
]
ARTIFACT = [
    "conv_id,iter_id,appended_input,total_input,out_token_size,carried_over",
    "0,0,17912,17912,146,0",
    "0,1,67,18125,40,18058",
    "0,2,67,18232,58,18165",
    "1,0,14320,14320,91,0",
    "1,1,67,14478,41,14411",
    "2,0,12405,12405,215,0",
]
CASES = {
    "artifact": Case("conserve_artifact", ARTIFACT, data_rows),
    "coding": Case("conserve_csv", head("weka_claude_code.csv.gz", 14, "trace_0003"), data_rows),
    "chat": Case("conserve_csv", head("mooncake_conversation_rebuilt.csv.gz", 8), data_rows),
    "weka file": Case("weka", head("format_samples/weka_trace_0026.json", 1), requests),
    "weka lines": Case("weka", [session("a", "x", "y"), session("b"), session("c", "x")], requests),
    "azure": Case("azure", head("format_samples/azure_2023_conv_head100.csv", 8), data_rows),
    "azure seconds": Case("azure", head("azure2023_code_singleturn.csv.gz", 8), data_rows),
    "burstgpt": Case("burstgpt", head("format_samples/burstgpt_v2_head.csv", 5), data_rows),
    "burstgpt sessions": Case("burstgpt", BURSTGPT, data_rows),
}
TOKEN = re.compile(rb'"[^"]*"|[^,:{}\[\]"]+|[,:{}\[\]]')


def check(case: Case, data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        start = time.perf_counter()
        source = Source(path)
        stopped = attempt(lambda: list(READERS[case.format].read(source)))
        skipping = Source(path, "skip")
        skipped = attempt(lambda: list(READERS[case.format].read(skipping)))
        attempt(lambda: list(open_recordings(path, detect(path), empty_output_tokens=1)[1]))
        assert time.perf_counter() - start < 5.0
        if stopped is not None:
            assert skipping.skipped == 0
            assert repr(skipped) == repr(stopped)
            with path.open(encoding="utf-8-sig", newline="") as plain:
                assert sum(len(one.turns) for one in stopped) == case.turns(plain.read())
        elif skipped is not None:
            assert skipping.skipped > 0


def fuzz(name: str, examples: int) -> None:
    case = CASES[name]
    if not case.lines:
        pytest.skip("needs shared/traces beside the checkout")

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(case.lines, TOKEN))
    def run(data: bytes) -> None:
        check(case, data)

    run()


@pytest.mark.parametrize("name", CASES)
def test_an_unbroken_file_is_read(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if not case.lines:
        pytest.skip("needs shared/traces beside the checkout")
    path = tmp_path / "file"
    path.write_text("\n".join(case.lines))
    check(case, path.read_bytes())
    assert detect(path) == case.format
    assert list(open_recordings(path)[1])


@pytest.mark.parametrize("name", CASES)
def test_a_broken_file_gives_conversations_or_an_error(name: str) -> None:
    fuzz(name, settings().max_examples)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ten_thousand_broken_files_give_conversations_or_an_error(name: str) -> None:
    fuzz(name, 10_000)
