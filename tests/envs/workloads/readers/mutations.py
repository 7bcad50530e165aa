"""Breaks files at random."""

from __future__ import annotations

import re

from hypothesis import strategies as st

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
