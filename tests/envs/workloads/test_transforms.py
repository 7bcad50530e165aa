"""Transforms: what they change, what they leave, and what they say of themselves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_gym.envs.workloads.changes.amounts import (
    CapGaps,
    CutContext,
    ScaleLengths,
    ScaleLoad,
)
from conserve_gym.envs.workloads.changes.choices import First, FirstInput, OfSplit, Sample
from conserve_gym.envs.workloads.changes.mix import Mix
from conserve_gym.envs.workloads.changes.open_loop import OpenLoop
from conserve_gym.envs.workloads.changes.transform import Transform
from conserve_gym.envs.workloads.conversation import GapKind, Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.splits import split_of
from conserve_gym.envs.workloads.transforms import TRANSFORMS, applied, built

KINDS: tuple[GapKind, ...] = ("tool", "user", "mixed", "unknown")
SMALL = Recording("s", "s", 5.0, (Turn(10, 10, 5, 0.0, sent_s=0.0),))
LARGE = Recording(
    "l",
    "l",
    1.0,
    (
        Turn(100, 100, 20, 0.0, "unknown", 0.0),
        Turn(150, 30, 10, 50.0, "tool", 52.0),
        Turn(170, 10, 10, 900.0, "user", 953.0),
        Turn(60, 20, 10, math.nan, "unknown", 954.0),  # rewound: 40 of 180 kept
    ),
)


@st.composite
def recordings(draw: st.DrawFn) -> list[Recording]:
    """Draw conversations whose recorded times leave room for their gaps."""
    drawn = []
    for i in range(draw(st.integers(1, 12))):
        turns: list[Turn] = []
        held, sent_s = 0, 0.0
        for k in range(draw(st.integers(1, 5))):
            kept = draw(st.one_of(st.just(held), st.integers(0, held)))
            new, output = draw(st.integers(1, 5000)), draw(st.integers(1, 500))
            gap_s = draw(st.floats(0.0, 2000.0)) if k else 0.0
            sent_s += gap_s + draw(st.floats(0.0, 10.0)) if k else 0.0
            turns.append(Turn(kept + new, new, output, gap_s, draw(st.sampled_from(KINDS)), sent_s))
            held = kept + new + output
        root = draw(st.sampled_from((f"{i}", "0")))
        drawn.append(Recording(f"{i}", root, draw(st.floats(0.0, 1e4)), tuple(turns)))
    return drawn


transforms = st.sampled_from(
    [
        CapGaps(tool=5.0),
        CapGaps(user=60.0, mixed=0.0, unknown=1.0),
        CutContext(4000),
        ScaleLengths(new=0.3),
        ScaleLengths(new=2.0, output=0.01),
        ScaleLoad(3.0),
        Sample(1),
        Sample(2, seed=5),
        First(1),
        FirstInput(most=3000),
        FirstInput(least=100),
        OfSplit("train"),
        OpenLoop(),
    ]
)


@settings(max_examples=300, deadline=None)
@given(recordings(), st.lists(transforms, max_size=5))
def test_any_sequence_leaves_what_can_be_played_or_says_why_not(
    given_: list[Recording], sequence: list[Transform]
) -> None:
    before = list(given_)
    try:
        changed = applied(sequence, given_)
    except WorkloadError as error:
        assert "\n" not in str(error)
        return
    finally:
        assert given_ == before
    assert changed
    assert changed == applied(sequence, given_)
    for recording in changed:
        held, sent_s = 0, 0.0
        assert recording.turns
        for turn in recording.turns:
            assert min(turn[:3]) >= 1
            assert turn.input_tokens - held <= turn.new_tokens <= turn.input_tokens
            assert turn.gap_s >= 0.0
            assert turn.sent_s >= sent_s
            assert turn.not_before_s in (0.0, turn.sent_s)
            held, sent_s = turn.input_tokens + turn.output_tokens, turn.sent_s


def test_gaps_are_capped_by_kind_and_later_turns_come_earlier() -> None:
    (capped,) = CapGaps(user=600.0)([LARGE])
    assert [turn.gap_s for turn in capped.turns[:3]] == [0.0, 50.0, 600.0]
    assert [turn.sent_s for turn in capped.turns] == [0.0, 52.0, 653.0, 654.0]
    assert math.isnan(capped.turns[3].gap_s)
    (capped,) = CapGaps(tool=10.0, user=100.0, unknown=0.0)([LARGE])
    assert [turn.gap_s for turn in capped.turns[:3]] == [0.0, 10.0, 100.0]
    assert [turn.sent_s for turn in capped.turns] == [0.0, 12.0, 113.0, 114.0]


def test_contexts_are_cut_before_the_turn_that_is_too_long() -> None:
    for tokens, turns in ((200, 4), (180, 4), (179, 2), (160, 2), (159, 1), (120, 1)):
        (cut,) = CutContext(tokens)([LARGE])
        assert cut.turns == LARGE.turns[:turns]
    assert CutContext(119)([LARGE, SMALL]) == [SMALL]


def test_lengths_are_scaled_and_what_is_reused_follows() -> None:
    (scaled,) = ScaleLengths(new=2.0, output=0.5)([LARGE])
    # 120 held -> 210; 160 -> 275, 180 -> 300 of which 40 / 180 are kept.
    assert [turn[:3] for turn in scaled.turns] == [
        (200, 200, 10),
        (270, 60, 5),
        (295, 20, 5),
        (107, 40, 5),
    ]
    assert [turn[3:] for turn in scaled.turns[:3]] == [turn[3:] for turn in LARGE.turns[:3]]
    assert ScaleLengths()([LARGE, SMALL]) == [LARGE, SMALL]
    (tiny,) = ScaleLengths(new=1e-9, output=1e-9)([SMALL])
    assert tiny.turns[0][:3] == (1, 1, 1)
    with pytest.raises(WorkloadError, match=r"scale_lengths.new=1e\+20, output=1: a context grows"):
        ScaleLengths(new=1e20)([SMALL])


def test_load_is_scaled() -> None:
    assert [one.arrival_s for one in ScaleLoad(4.0)([LARGE, SMALL])] == [0.25, 1.25]
    assert ScaleLoad(4.0)([LARGE])[0].turns == LARGE.turns


def test_samples_are_drawn_without_putting_back_and_keep_the_order() -> None:
    many = [SMALL._replace(identifier=str(i)) for i in range(100)]
    drawn = [Sample(30, seed)(many) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    numbers = [int(one.identifier) for one in drawn[0]]
    assert numbers == sorted(set(numbers))
    assert Sample(100)(many) == many
    chosen = np.bincount([int(one.identifier) for s in range(400) for one in Sample(30, s)(many)])
    assert 60 < chosen.min() <= chosen.max() < 180  # 120 each on average, ± 9
    with pytest.raises(WorkloadError, match=r"sample.conversations=101: there are only 100"):
        Sample(101)(many)


def test_choices_by_place_length_and_name() -> None:
    assert First(1)([LARGE, SMALL]) == [LARGE]
    with pytest.raises(WorkloadError, match=r"first.conversations=3: there are only 2"):
        First(3)([LARGE, SMALL])
    assert FirstInput(most=10)([LARGE, SMALL]) == [SMALL]
    assert FirstInput(least=11)([LARGE, SMALL]) == [LARGE]
    assert FirstInput(least=10, most=100)([LARGE, SMALL]) == [LARGE, SMALL]
    assert OfSplit(split_of("s"))([SMALL]) == [SMALL]


def test_an_open_loop_takes_recorded_times_instead_of_gaps() -> None:
    (fixed,) = OpenLoop()([LARGE])
    assert [turn.gap_s for turn in fixed.turns] == [0.0] * 4
    assert [turn.not_before_s for turn in fixed.turns] == [0.0, 52.0, 953.0, 954.0]
    assert [turn[:3] for turn in fixed.turns] == [turn[:3] for turn in LARGE.turns]
    for sent_s, why in ((math.nan, "not known"), (40.0, "below 52 s of"), (math.inf, "below|not")):
        turns = (*LARGE.turns[:2], LARGE.turns[2]._replace(sent_s=sent_s))
        with pytest.raises(WorkloadError, match=rf"conversation 'l', turn 2: .* is .*{why}"):
            OpenLoop()([LARGE._replace(turns=turns)])
    with pytest.raises(WorkloadError, match="cap_gaps must stand before open_loop"):
        applied([OpenLoop(), CapGaps(user=1.0)], [LARGE])


@settings(max_examples=100, deadline=None)
@given(recordings(), recordings(), st.floats(0.05, 0.95), st.integers(0, 99))
def test_a_mixture_has_its_shares(
    ours: list[Recording], others: list[Recording], share: float, seed: int
) -> None:
    ours = [one._replace(identifier=f"ours {one.identifier}") for one in ours]
    mix = Mix(Path("others.csv"), share, seed=seed)
    try:
        mixed = mix.of(ours, others)
    except WorkloadError as error:
        assert "too few for one of each" in str(error)
        assert min(len(ours) / (1.0 - share), len(others) / share) * min(share, 1 - share) <= 0.5
        return
    count = sum(not one.identifier.startswith("ours") for one in mixed)
    assert abs(count - share * len(mixed)) <= 1.0
    assert count == len(others) or len(mixed) - count == len(ours)  # as many as there are
    assert len({one.identifier for one in mixed}) == len(mixed)
    arrivals = [one.arrival_s for one in mixed]
    assert arrivals == sorted(arrivals)
    assert mixed == mix.of(ours, others)


def test_a_mixture_without_times_is_shuffled() -> None:
    ours = [SMALL._replace(identifier=f"o{i}", arrival_s=math.nan) for i in range(50)]
    others = [LARGE._replace(identifier=f"t{i}") for i in range(50)]
    mixed = [one.identifier[0] for one in Mix(Path("x"), 0.5).of(ours, others)]
    assert 30 < mixed[:50].count("o") + mixed[50:].count("t") < 70


def test_each_is_built_from_its_configuration_and_says_what_it_does() -> None:
    given_: list[Any] = [
        {"first_input": {"most": 32768}},
        {"cap_gaps": {"user": 600, "tool": 60}},
        {"cut_context": {"tokens": 131072}},
        {"scale_lengths": {"new": 0.5}},
        {"scale_load": {"factor": 2}},
        {"sample": {"conversations": 1000}},
        {"first": {"conversations": 10}},
        {"split": {"part": "train"}},
        {"mix": {"path": "a/b.csv", "share": 0.25}},
        {"open_loop": {}},
        {"open_loop": None},
        First(2),
    ]
    assert [transform.name for transform in built(given_)] == [
        "first prompts up to 32,768 tokens",
        "gaps capped (tool 60 s, user 600 s)",
        "cut at 131,072 tokens",
        "new tokens × 0.5, outputs × 1",
        "recorded load × 2",
        "a sample of 1,000 (seed 0)",
        "the first 10",
        "train split",
        "mixed with 0.25 of b.csv (seed 0)",
        *["open loop (turns at their recorded times, or at the end of the one before)"] * 2,
        "the first 2",
    ]
    assert {name for one in given_[:10] for name in one} == set(TRANSFORMS)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ("open_loop", r"transforms\.0='open_loop': must be one \{name"),
        ({}, r"transforms\.0=\{\}: must be one"),
        ({"loop": {}}, r"transforms\.0='loop' is none of cap_gaps, cut_context"),
        ({"cap_gaps": {}}, "give at least one of tool, user, mixed, unknown"),
        ({"cap_gaps": {"user": -1}}, r"transforms\.0\.cap_gaps\.user=-1: .* equal to 0"),
        ({"cap_gaps": {"human": 1}}, r"transforms\.0\.cap_gaps\.human=1: Unexpected"),
        ({"cap_gaps": 5}, r"transforms\.0\.cap_gaps=5: "),
        ({"cut_context": {}}, r"transforms\.0\.cut_context\.tokens=.*: .*required"),
        ({"cut_context": {"tokens": 0}}, r"cut_context\.tokens=0: .*greater than 0"),
        ({"scale_lengths": {"new": math.nan}}, r"scale_lengths\.new=nan: .*finite"),
        ({"scale_load": {"factor": 0}}, r"scale_load\.factor=0: .*greater than 0"),
        ({"sample": {"conversations": 1, "seed": -1}}, r"sample\.seed=-1: .*equal to 0"),
        ({"first": {"conversations": "x"}}, r"first\.conversations='x': .*valid integer"),
        ({"first_input": {"least": 5, "most": 4}}, "most=4 is below least=5"),
        ({"split": {"part": "dev"}}, r"split\.part='dev': .*'train'"),
        ({"mix": {"path": "x", "share": 1}}, r"mix\.share=1: .*less than 1"),
        ({"open_loop": {"at": 1}}, r"transforms\.0\.open_loop\.at=1: Unexpected"),
    ],
)
def test_what_cannot_be_is_named(given_: Any, message: str) -> None:
    with pytest.raises(WorkloadError, match=message) as raised:
        built([given_])
    assert "\n" not in str(raised.value)


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(WorkloadError, match="cut at 5 tokens: no conversation is left"):
        applied([CutContext(5)], [LARGE])
