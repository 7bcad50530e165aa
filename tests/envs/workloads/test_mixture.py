"""Mixtures: each conversation comes from one part, by its weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from conserve_gym.envs.configuration import ConfigurationError, load_scenario
from conserve_gym.envs.workloads.conversation import Turn, WorkloadError
from conserve_gym.envs.workloads.mixture import MixtureWorkload


class Stub:
    """Draws conversations that tell their part and their number."""

    def __init__(self, name: str, part: int, count: int) -> None:
        self.name = name
        self.part = part
        self.count = count

    def draw(self, rng: np.random.Generator) -> list[tuple[Turn, ...]]:
        return [(Turn(i + 1, i + 1, self.part, 0.0),) for i in range(self.count)]


def mixture(conversations: int = 1000, **weights: float) -> MixtureWorkload:
    parts = {name: Stub(f"the {name}", i + 1, 40 + i) for i, name in enumerate(weights)}
    return MixtureWorkload(parts=parts, weights=weights, conversations=conversations)


def test_parts_have_their_shares_and_their_order_is_drawn() -> None:
    drawn = mixture(conversations=4000, a=1, b=3).draw(np.random.default_rng(0))
    parts = np.array([turns[0].output_tokens for turns in drawn])
    assert parts.size == 4000
    assert np.mean(parts == 2) == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 4000) ** 0.5)
    halves = [np.mean(half == 2) for half in np.split(parts, 2)]
    assert halves[0] == pytest.approx(halves[1], abs=0.06)


def test_a_part_is_used_up_before_it_repeats() -> None:
    drawn = mixture(conversations=100, a=1).draw(np.random.default_rng(0))
    counts = np.unique([turns[0].input_tokens for turns in drawn], return_counts=True)[1]
    assert counts.size == 40 and set(counts) == {2, 3}
    few = [turns[0].input_tokens for turns in mixture(20, a=1).draw(np.random.default_rng(0))]
    assert len(set(few)) == 20 and max(few) > 20  # not always the first ones of a recording


def test_the_name_says_what_was_mixed() -> None:
    assert mixture(a=1, b=2).name == "mixture of 33.3 % the a and 66.7 % the b"
    assert mixture(a=2).name == "mixture of 100 % the a"
    assert mixture(a=1, b=1, c=2).name == "mixture of 25 % the a, 25 % the b and 50 % the c"


def test_the_same_seed_draws_the_same() -> None:
    first, again, other = (
        mixture(a=1, b=3).draw(np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ({}, {}, "workload.parts={}: needs one at least"),
        ({"a": Stub("a", 1, 1)}, {}, "workload.weights.a is needed"),
        ({}, {"a": 1.0}, "workload.weights.a=1: is the weight of no part"),
        ({"a": 7}, {"a": 1.0}, "workload.parts.a=7: no workload"),
    ],
)
def test_what_cannot_be_mixed_is_said(
    parts: dict[str, Any], weights: dict[str, float], message: str
) -> None:
    with pytest.raises(WorkloadError, match=message):
        MixtureWorkload(parts, weights, 10)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "x"])
def test_weights_are_positive(weight: Any) -> None:
    with pytest.raises(ValidationError, match=r"weights\.a"):
        mixture(a=weight)


def test_embedded_workloads_are_mixed_on_the_command_line() -> None:
    workload = load_scenario(["workload=mixture"]).workload
    assert workload.name == "mixture of 50 % miniswe and 50 % claude_code"
    drawn = workload.draw(np.random.default_rng(0))
    assert len(drawn) == 255
    without_gaps = sum(all(turn.gap_s == 0.0 for turn in turns) for turns in drawn)
    assert without_gaps == pytest.approx(128, abs=35)
    changed = [
        "workload=mixture",
        "workload.weights.miniswe=3",
        "~workload.parts.claude_code",
        "~workload.weights.claude_code",
        "+workload@workload.parts.chat=chat",
        "+workload.weights.chat=1",
        "workload.parts.miniswe.max_turns=10",
        "workload.conversations=30",
    ]
    workload = load_scenario(changed).workload
    assert workload.name == "mixture of 75 % miniswe and 25 % chat"
    drawn = workload.draw(np.random.default_rng(0))
    assert len(drawn) == 30
    assert max(map(len, drawn)) > 5


def test_recordings_are_mixed_too(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("conv_id,turn,gap_s,input_tokens,new_tokens,output_tokens\na,0,,5,5,1\n")
    workload = load_scenario(
        [
            "workload=mixture",
            "+workload@workload.parts.mine=trace",
            f"workload.parts.mine.path={path}",
            "+workload.weights.mine=2",
        ]
    ).workload
    assert workload.name.endswith(
        "25 % claude_code and 50 % trace.csv (the first 1 conversations, 1 turns, cut at 5)"
    )
    drawn = workload.draw(np.random.default_rng(0))
    assert sum(turns[0].input_tokens == 5 for turns in drawn) == pytest.approx(128, abs=35)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("workload.weights.miniswe=0", r"workload.weights.miniswe=0.*greater than 0"),
        ("workload.conversations=0", "workload.conversations=0"),
        ("+workload.weights.chat=1", "workload.weights.chat=1: is the weight of no part"),
        ("~workload.weights.miniswe", "workload.weights.miniswe is needed"),
    ],
)
def test_wrong_configuration_names_field_and_value(override: str, message: str) -> None:
    with pytest.raises((ConfigurationError, WorkloadError), match=message):
        load_scenario(["workload=mixture", override])
