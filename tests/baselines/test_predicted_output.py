"""Placement by predicted ends, and the predictor that it is given."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from turn_observations import KV_CAPACITY, D, M, P, toy_site, turn_at_door

from conserve_gym.agents import output_lengths
from conserve_gym.baselines.output_predictor import (
    FEATURES,
    TRAINED_ON,
    LearnedOutput,
    Ridge,
    features,
    learned,
    table,
)
from conserve_gym.baselines.predicted_output import PredictedOutput
from conserve_gym.baselines.registry import make_baseline
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement

SITE = toy_site(P, D, D)


class Told:
    """Expects what it is told."""

    def __init__(self, tokens: float) -> None:
        self.tokens = tokens

    def reset(self) -> None:
        """Keep no state."""

    def expected_output(self, observation: Observation) -> float:
        return self.tokens


@pytest.mark.parametrize(("tokens", "placement"), [(1, Placement(1, 1)), (100, Placement(2, 2))])
def test_a_long_output_leaves_a_slow_decoder_and_a_short_one_stays_with_its_kv(
    tokens: float, placement: Placement
) -> None:
    # Home reads 200,000 tokens a step, 20 ms more; the history of 50,000 moves in 55 ms.
    engines = {
        "holds": {1: 50_000},
        "decoding": {1: 10},
        "pinned": {1: 10},
        "kv_known": {1: 200_000 / KV_CAPACITY},
    }
    seen = turn_at_door(P, D, D, prompt=50_001, new=1, turn=1, home=1, engines=engines)
    assert PredictedOutput(SITE, Told(tokens)).decide(seen) == placement


def test_the_prefiller_takes_a_prompt_while_the_decoders_have_queues() -> None:
    queued = {"prompt_in_flight": {1: 9000, 2: 9000}}
    seen = turn_at_door(P, D, D, prompt=5000, engines=queued)
    assert PredictedOutput(SITE, Told(100)).decide(seen) == Placement(0, 1)
    seen = turn_at_door(P, D, D, prompt=5000, engines={"prompt_in_flight": {0: 9000}})
    assert PredictedOutput(SITE, Told(100)).decide(seen) == Placement(1, 1)


def test_what_ends_soon_slows_a_long_output_less_than_what_goes_on() -> None:
    # Both decoders hold 200,000 tokens of one turn. Engine 1's is the longer one by prediction.
    predictor = Told(1000)
    policy = PredictedOutput(SITE, predictor)
    both = {"pinned": {1: 1, 2: 1}, "kv_known": dict.fromkeys((1, 2), 200_000 / KV_CAPACITY)}
    first = turn_at_door(P, D, D, prompt=200_000, conversation=0, free=[0.0, 2.0, 1.0])
    assert policy.decide(first).decode_at == 1
    predictor.tokens = 100
    second = turn_at_door(P, D, D, prompt=200_000, conversation=1, closed=(1,))
    assert policy.decide(second).decode_at == 2

    def next_one(conversation: int, time: float) -> int:
        seen = turn_at_door(P, D, D, prompt=100, conversation=conversation, time=time, engines=both)
        return copy.deepcopy(policy).decide(seen).decode_at

    predictor.tokens = 500
    assert next_one(2, 20.0) == 2  # its turn has just begun, and ends within 100 tokens
    assert next_one(3, 200.0) == 1  # both should have ended, and have not
    policy.reset(0)
    assert next_one(4, 20.0) == 1


def test_engines_without_room_are_no_candidates_unless_all_are() -> None:
    policy = PredictedOutput(SITE, Told(10))
    assert policy.decide(turn_at_door(P, D, D, prompt=100, closed=(1,))).decode_at == 2
    seen = turn_at_door(P, D, D, prompt=100, closed=(1, 2), free=[0.0, 1.0, 2.0])
    assert policy.decide(seen).decode_at == 2


def test_a_lone_engine_colocates() -> None:
    policy = PredictedOutput(toy_site(M), Told(10))
    assert policy.decide(turn_at_door(M, prompt=100)) == Placement(0, 0)


def test_earlier_outputs_are_what_prompts_have_grown_by() -> None:
    weights = [0.0] * len(FEATURES)
    weights[FEATURES.index("log of last output")] = 1.0
    predictor = LearnedOutput(Ridge(weights, 2.0))

    def expected(prompt: int, new: int, turn: int, conversation: int = 0) -> float:
        seen = turn_at_door(P, D, prompt=prompt, new=new, turn=turn, conversation=conversation)
        return predictor.expected_output(seen)

    assert expected(1000, 1000, 0) == pytest.approx(2.0)  # nothing is known: twice exp(0)
    assert expected(500, 500, 0, conversation=1) == pytest.approx(2.0)
    assert expected(1150, 50, 1) == pytest.approx(2.0 * 101)  # 1,000 + 100 + 50 new
    assert expected(800, 400, 2) == pytest.approx(2.0 * 101)  # a cut history says nothing
    predictor.reset()
    assert expected(1150, 50, 1) == pytest.approx(2.0)


def test_features_know_the_first_turns() -> None:
    known = features(100, 10, 2, [9, 99])
    assert known[-4:].tolist() == [0.0, 0.0, 1.0, 0.0]
    assert known[FEATURES.index("mean log of earlier outputs")] == pytest.approx(3.4539, abs=1e-4)


def test_a_small_fit_predicts_better_than_the_mean_and_a_wrong_one_does_not() -> None:
    training, validation = (output_lengths.samples("miniswe", [seed]) for seed in (10**6, 1))
    measured = output_lengths.errors(output_lengths.fit([training]), validation)
    assert measured["r2_of_log"] > 0.2  # 0 is the mean of the validation set itself
    order = np.random.default_rng(0).permutation(len(training.outputs))
    shuffled = output_lengths.Samples(training.known[order], training.outputs)
    worse = output_lengths.errors(output_lengths.fit([shuffled]), validation)
    assert worse["r2_of_log"] < 0.05


def test_the_committed_weights_are_those_that_the_command_fits() -> None:
    training = output_lengths.samples("miniswe", output_lengths.TRAINING_SEEDS)
    validation = output_lengths.samples("miniswe", output_lengths.VALIDATION_SEEDS)
    ridge, committed = output_lengths.fit([training]), table()["fits"]["miniswe"]
    assert ridge.weights.tolist() == pytest.approx(committed["weights"], rel=1e-4)
    assert ridge.smearing == pytest.approx(committed["smearing"], rel=1e-4)
    measured = output_lengths.errors(ridge, validation)
    assert measured == pytest.approx(committed["errors"]["miniswe"], rel=1e-3)


def test_every_fit_can_be_chosen() -> None:
    assert tuple(table()["fits"]) == TRAINED_ON
    assert table()["features"] == list(FEATURES)
    for name in TRAINED_ON:
        policy = make_baseline("predicted_output", SITE, {"trained_on": name})
        assert policy.decide(turn_at_door(P, D, D, prompt=9000)).decode_at in (1, 2)
    seen = turn_at_door(P, D, D, prompt=15_000)
    assert 60 < learned("miniswe").expected_output(seen) < 200
