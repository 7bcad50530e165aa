"""Formats by name and by their first lines."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard

from conserve_gym.envs.workloads.conversation import WorkloadError
from conserve_gym.envs.workloads.limits import Limits
from conserve_gym.envs.workloads.readers.registry import READERS, detect, open_recordings

TRACES = Path(__file__).resolve().parents[4].parent / "shared/traces"
CSV = "conv_id,turn,gap_s,input_tokens,new_tokens,output_tokens\na,0,,5,5,1\nb,0,,6,6,1\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conserve_miniswe_trace.csv.gz", "conserve_csv"),
        ("weka_claude_code.csv.gz", "conserve_csv"),
        ("mooncake_conversation_rebuilt.csv.gz", "conserve_csv"),
        ("taubench_airline_gpt4o_lengths.csv.gz", "conserve_csv"),
        ("azure2023_code_singleturn.csv.gz", "azure"),
        ("format_samples/azure_2023_conv_head100.csv", "azure"),
        ("format_samples/burstgpt_v2_head.csv", "burstgpt"),
        ("format_samples/weka_trace_0026.json", "weka"),
    ],
)
def test_real_files_are_told(name: str, expected: str) -> None:
    path = TRACES / name
    if not path.is_file():
        pytest.skip(f"the file is not there: {path}")
    assert detect(path) == expected


def test_packed_files_are_told_and_read(tmp_path: Path) -> None:
    packed = {
        "plain": CSV.encode(),
        "gzip": gzip.compress(CSV.encode()),
        "zstd": zstandard.compress(CSV.encode()),
        "two parts": zstandard.compress(CSV[:60].encode()) + zstandard.compress(CSV[60:].encode()),
    }
    for name, content in packed.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert len(list(open_recordings(path)[1])) == 2


def test_a_file_of_no_known_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{"question": 1}\n')
    with pytest.raises(WorkloadError, match="has no known format; format= takes one of conserve_"):
        open_recordings(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(WorkloadError, match="line 1: no column conv_id, turn, gap_s"):
        list(open_recordings(path)[1])


def test_limits_hold_for_every_format(tmp_path: Path) -> None:
    csv, azure = tmp_path / "a.csv", tmp_path / "b.csv"
    csv.write_text(CSV)
    azure.write_text("arrival_s,input_tokens,output_tokens\n0,5,1\n1,6,1\n2,x,1\n")
    for path in (csv, azure):
        assert len(list(open_recordings(path, limits=Limits(conversations=2))[1])) == 2
        (one,) = open_recordings(path, limits=Limits(max_first_input_tokens=5, conversations=1))[1]
        assert one.turns[0].input_tokens == 5


def test_every_reader_goes_by_its_own_name() -> None:
    assert all(name == reader.FORMAT for name, reader in READERS.items())
