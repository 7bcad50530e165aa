"""Splits: by the root's name alone, with the shares they claim."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.splits import of_split, split_of

SPLITS = ("train", "validation", "test")
TURNS = (Turn(1, 1, 1, 0.0),)


def recording(identifier: str, root: str) -> Recording:
    return Recording(identifier, root, 0.0, TURNS)


def test_shares_are_80_10_10() -> None:
    rng = random.Random(0)
    counts = Counter(split_of(f"{rng.getrandbits(64):x}") for _ in range(10_000))
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        error = (share * (1.0 - share) * 10_000) ** 0.5
        assert abs(counts[split] - share * 10_000) < 4.0 * error


def test_numbered_names_are_split_as_well() -> None:
    counts = Counter(split_of(str(number)) for number in range(10_000))
    assert [round(counts[split], -3) for split in SPLITS] == [8000, 1000, 1000]


def test_the_split_of_a_name_is_for_ever() -> None:
    # `printf NAME | sha256sum` begins with these digits; e666 is nine tenths, cccc eight.
    begin = {"a": "ca97", "g": "cd0a", "i": "de7d", "t": "e3b9", "ll": "f9e0", "nn": "fab6"}
    for name, digits in begin.items():
        share = int(digits, 16) / 16**4
        assert split_of(name) == SPLITS[(share >= 0.8) + (share >= 0.9)]
    code = (
        "from conserve_gym.envs.workloads.splits import split_of as s; print(*map(s, 'abcdefgh'))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [split_of(name) for name in "abcdefgh"]


@given(st.lists(st.tuples(st.text(), st.text()), max_size=40), st.randoms())
def test_every_recording_is_in_one_split_with_its_root_whatever_the_file(
    names: list[tuple[str, str]], rng: random.Random
) -> None:
    recordings = [recording(*name) for name in names]
    parts = {split: of_split(recordings, split) for split in SPLITS}  # type: ignore[arg-type]
    assert sorted(one for part in parts.values() for one in part) == sorted(recordings)
    for split, part in parts.items():
        assert part == [one for one in recordings if split_of(one.root) == split]
    # Another file: shuffled, with a part of the conversations.
    other = rng.sample(recordings, len(recordings) // 2)
    for split, part in parts.items():
        assert set(of_split(other, split)) == set(part) & set(other)  # type: ignore[arg-type]


def test_another_split_is_refused() -> None:
    with pytest.raises(WorkloadError, match="split='dev' is none of train, validation, test"):
        of_split([], "dev")  # type: ignore[arg-type]
