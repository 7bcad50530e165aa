"""Profiles of recordings: counted by hand, and of the public traces."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.envs.workloads import profile
from conserve_gym.envs.workloads.conversation import Recording, Turn
from conserve_gym.envs.workloads.limits import Limits
from conserve_gym.envs.workloads.profile import Profile
from conserve_gym.envs.workloads.readers.registry import open_recordings

TRACES = Path(__file__).resolve().parents[3].parent / "shared/traces"
ENGINE = StandaloneEngine.of(load_scenario().cluster)
A = (Turn(100, 100, 10, 0.0), Turn(130, 20, 30, 5.0, "tool"), Turn(200, 180, 5, 60.0, "user"))
B = (Turn(300, 300, 1, 0.0),)


def recordings() -> list[Recording]:
    return [Recording("a", "a", 10.0, A), Recording("b", "b", 0.0, B)]


def test_statistics_of_two_recordings() -> None:
    found = Profile.of(recordings(), ENGINE).statistics()
    assert found["conversations"] == 2
    assert found["turns_total"] == 4
    assert found["turns_p50"] == 2.0
    assert found["first_input_p50"] == 200.0
    assert found["peak_context_p50"] == 253.0
    assert found["turn_1_share_of_new_input"] == 400 / 600
    assert Profile.of(recordings(), ENGINE).turn_1_shares.tolist() == [100 / 300, 1.0]
    assert found["rewritten_turns_share"] == 0.5
    assert found["rewritten_turns_share_of_later_new"] == 0.9
    assert (found["tool_gaps_share"], found["user_gaps_share"]) == (0.5, 0.5)
    assert found["unknown_gaps"] == 0.0
    assert found["arrivals_per_s"] == 0.1
    idle = 65.0 / ENGINE.latencies(A).e2e_s
    assert found["idle_share_p50"] == pytest.approx(idle)
    assert 0.9 < idle < 1.0


def test_what_nobody_knows_is_nan() -> None:
    unknown = (A[0], A[1]._replace(gap_s=math.nan))
    found = Profile.of([Recording("a", "a", math.nan, unknown)], ENGINE).statistics()
    assert math.isnan(found["idle_share_p50"])
    assert math.isnan(found["gap_s_p50"])
    assert found["unknown_gaps"] == 1.0
    assert "arrivals_per_s" not in found


@pytest.mark.parametrize("of", [recordings(), recordings()[1:]])
def test_a_profile_is_drawn(of: list[Recording], tmp_path: Path) -> None:
    path = tmp_path / "profile.png"
    profile.draw(Profile.of(of, ENGINE), "title", path)
    assert path.read_bytes().startswith(b"\x89PNG")


# p50, p95 and p99 as the traces' own table has them; peaks there are of prompts without outputs.
PUBLIC: list[tuple[str, dict[str, Any], dict[str, tuple[float, ...]]]] = [
    (
        "conserve_miniswe_trace",
        {},
        {
            "size": (2294, 22_805),
            "turns": (10, 10, 10),
            "first_input": (15_890, 17_293, 18_755),
            "later_new": (67, 67, 69),
            "output": (121, 799, 3896),
        },
    ),
    (
        "conserve_miniswe_trace",
        {"limits": Limits(conversations=255, max_turns=5)},
        {
            "size": (255, 1275),
            "turns": (5, 5, 5),
            "first_input": (15_709, 17_108, 18_230),
            "later_new": (67, 67, 69),
            "output": (57, 270, 3832),
        },
    ),
    (
        "weka_claude_code",
        {"empty_output_tokens": 1},
        {
            "size": (773, 49_334),
            "turns": (39, 227, 326),
            "first_input": (21_643, 359_061, 651_442),
            "later_new": (320, 7579, 64_157),
            "output": (216, 1554, 3686),
            "gap_s": (10, 467, 3030),
        },
    ),
    (
        "weka_claude_code",
        {
            "empty_output_tokens": 1,
            "limits": Limits(max_first_input_tokens=32_768, max_context_tokens=131_072),
        },
        {
            "size": (448, 21_545),
            "turns": (42, 117, 149),
            "first_input": (18_385, 25_439, 30_418),
            "later_new": (252, 6919, 30_628),
            "output": (204, 1344, 3626),
            "gap_s": (8, 378, 3006),
        },
    ),
    (
        # The traces' table has other values for this file (of conversations with two turns or
        # more: turns 2, 6, 11; first input 6,085, 35,912, 75,070); these are the file's own.
        "mooncake_conversation_rebuilt",
        {},
        {
            "size": (5508, 8411),
            "turns": (1, 4, 7),
            "first_input": (6326, 39_421, 89_755),
            "later_new": (32, 7437, 17_083),
            "output": (354, 718, 1207),
            "gap_s": (125, 632, 1576),
        },
    ),
    (
        "taubench_airline_gpt4o_lengths",
        {},
        {
            "size": (200, 2454),
            "turns": (11, 23, 30),
            "first_input": (3870, 3890, 3898),
            "later_new": (38, 363, 982),
            "output": (43, 179, 280),
        },
    ),
]


@pytest.mark.skipif(not TRACES.is_dir(), reason=f"needs the public traces in {TRACES}")
@pytest.mark.parametrize(("name", "options", "expected"), PUBLIC)
def test_the_public_traces_have_their_statistics(
    name: str, options: dict[str, Any], expected: dict[str, tuple[float, ...]]
) -> None:
    _, stream = open_recordings(TRACES / f"{name}.csv.gz", **options)
    found = Profile.of(stream, ENGINE).statistics()
    assert (found["conversations"], found["turns_total"]) == expected.pop("size")
    for quantity, values in expected.items():
        measured = [found[f"{quantity}_p{percent}"] for percent in profile.PERCENTILES]
        assert measured == pytest.approx(values, abs=0.51), quantity  # they are rounded
    if name.startswith("weka"):
        # There from the closed API's service times, here from a lone A40's with a small model.
        idle = {773: (0.75, 0.87, 0.95), 448: (0.68, 0.82, 0.93)}[int(found["conversations"])]
        here = [found[f"idle_share_p{percent}"] for percent in profile.QUARTILES]
        assert here == pytest.approx(idle, abs=0.1)
    else:
        assert ("gap_s" in expected) == (not math.isnan(found["idle_share_p50"]))
