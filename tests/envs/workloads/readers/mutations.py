"""Breaks files at random, and looks at what is read of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import get_args

from hypothesis import strategies as st

from conserve_gym.envs.workloads.conversation import GapKind, Recording, WorkloadError

ODD = [
    b"-1", b"0", b"1", b"0.5", b"1e400", b"-1e-3", b"NaN", b"inf", b"Infinity", b"1e15", b"9" * 30,
    b"9" * 5000, b'"x"', b'"', b'""', b"x", b"", b" ", b"null", b"true", b"[]", b"{}", b"[" * 2000,
    b",", b"\xff", b"\x00", b"\r", b"\n", b"1_0", b"2023-02-30 00:00:00",
    b"0001-01-01 00:00:00+23:59", b'"2026-02-30T00:00:00Z"', b'"0001-01-01T00:00:00+23:59"',
]  # fmt: skip
WHATS = ["flip", "cut", "drop", "double", "move", "swap", "replace", "replace", "replace"]


@st.composite
def mutated(draw: st.DrawFn, lines: list[str], token: re.Pattern[bytes]) -> bytes:
    """Return the bytes of a file with a few of its lines broken.

    Args:
        draw: Of Hypothesis.
        lines: The file.
        token: What of a line changes places or is replaced.
    """
    rows = [line.encode() for line in lines]
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        if not rows:
            break
        at = draw(st.integers(0, len(rows) - 1))
        row = rows[at]
        tokens = [match.span() for match in token.finditer(row)]
        what = draw(st.sampled_from(WHATS))
        if what == "flip" and row:
            place = draw(st.integers(0, len(row) - 1))
            rows[at] = row[:place] + bytes([draw(st.integers(0, 255))]) + row[place + 1 :]
        elif what == "cut":
            rows[at] = row[: draw(st.integers(0, len(row)))]
        elif what == "drop":
            del rows[at]
        elif what == "double":
            rows.insert(draw(st.integers(0, len(rows))), row)
        elif what == "move":
            rows.insert(draw(st.integers(0, len(rows) - 1)), rows.pop(at))
        elif what == "swap" and len(tokens) > 1:
            first, second = sorted(draw(st.sampled_from(tokens)) for _ in range(2))
            if first != second:
                (a, b), (c, d) = first, second
                rows[at] = row[:a] + row[c:d] + row[b:c] + row[a:b] + row[d:]
        elif what == "replace" and tokens:
            a, b = draw(st.sampled_from(tokens))
            rows[at] = row[:a] + draw(st.sampled_from(ODD)) + row[b:]
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    return end.join(rows) + draw(st.sampled_from([b"", end]))


def attempt(read: Callable[[], list[Recording]]) -> list[Recording] | None:
    """Return sound recordings, or None for the one error in one line."""
    try:
        recordings = read()
    except WorkloadError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 1000
        return None
    names = [one.identifier for one in recordings]
    assert len(set(names)) == len(names)
    for one in recordings:
        assert one.turns
        assert one.parent != one.identifier
        assert (one.parent is None) == (one.root == one.identifier)
        assert math.isnan(one.arrival_s) or 0.0 <= one.arrival_s < math.inf
        held = 0
        for turn in one.turns:
            assert max(turn.input_tokens - held, 1) <= turn.new_tokens <= turn.input_tokens
            assert turn.output_tokens >= 1
            assert math.isnan(turn.gap_s) or 0.0 <= turn.gap_s < math.inf
            assert turn.gap_kind in get_args(GapKind)
            held = turn.input_tokens + turn.output_tokens
    return recordings
