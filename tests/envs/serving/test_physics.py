"""Gates that every tier has to pass, shipped and derived: nothing is faster than physics allows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from examples import NETWORK, NO_RESERVATION, conversation, play, times
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from conserve_gym import conf
from conserve_gym.envs.calibration import derive
from conserve_gym.envs.configuration import validated
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec, EngineSpec
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.physics import fastest_step_s
from conserve_gym.envs.serving.step_time import StepTime
from conserve_gym.fleet import Role
from conserve_gym.ledger import TurnArrived, TurnFinished
from conserve_gym.placement import Placement

assert conf.__file__
CONF = Path(conf.__file__).parent


def configured(group: str, kind: type) -> dict[str, object]:
    return {
        path.stem: validated(kind, OmegaConf.load(path))
        for path in sorted((CONF / group).glob("*.yaml"))
    }


GPUS = configured("gpu", derive.Gpu)
MODELS = configured("model", derive.Model)
TIERS: dict[str, Hardware] = {
    **configured("hardware", Hardware),  # type: ignore[dict-item]
    **{
        f"derived {gpu} {model}": derive.hardware(GPUS[gpu], MODELS[model])  # type: ignore[arg-type]
        for gpu in GPUS
        for model in MODELS
    },
}
every_tier = pytest.mark.parametrize("tier", TIERS.values(), ids=TIERS.keys())

PROMPTS = (0, 1, 16, 512, 2048, 8192)
CONTEXTS = (0, 1024, 16_384, 65_536)
BATCHES = (0, 1, 8, 64, 256)
LENGTHS = (1, 1024, 8192)


def step_s(tier: Hardware, prompt: int, context: int, sequences: int, kv_tokens: int) -> float:
    return StepTime(tier).step(prompt, context, sequences, kv_tokens)


def test_the_tiers_that_are_promised_are_there() -> None:
    gpus = ("a100_80gb", "h100", "h200", "l40s", "rtx_pro_6000")
    models = ("qwen3_0.6b", "qwen3_8b", "llama3.1_8b")
    promised = {f"{gpu}_{model}" for gpu in gpus for model in models}
    assert TIERS.keys() >= promised | {"a40_qwen3_0.6b_300w", "a40_qwen3_0.6b_200w"}
    for name, tier in TIERS.items():
        assert tier.provenance.derived == name.startswith("derived")
        if not tier.provenance.derived:
            assert tier.provenance.holdout_error_pct["prefill"] <= 5.0


@every_tier
def test_no_step_is_faster_than_the_gpu(tier: Hardware) -> None:
    for prompt in PROMPTS:
        for context in CONTEXTS if prompt else (0,):
            for sequences in BATCHES if prompt else BATCHES[1:]:
                for length in LENGTHS if sequences else (0,):
                    step = prompt, context, sequences, sequences * length
                    assert step_s(tier, *step) >= fastest_step_s(tier, *step), step


@every_tier
def test_more_work_takes_longer(tier: Hardware) -> None:
    for sequences in BATCHES[1:]:
        by_kv = [step_s(tier, 0, 0, sequences, kv) for kv in range(0, 400_000, 20_000)]
        assert all(shorter <= longer for shorter, longer in pairwise(by_kv))
        beyond_the_floor = [s for s in by_kv if s > by_kv[0]]
        assert all(shorter < longer for shorter, longer in pairwise(beyond_the_floor))
        assert len(beyond_the_floor) > 10
        mixed = [step_s(tier, 512, 0, sequences, kv) for kv in range(0, 400_000, 20_000)]
        assert all(shorter < longer for shorter, longer in pairwise(mixed))
    for context in CONTEXTS:
        by_prompt = [step_s(tier, prompt, context, 0, 0) for prompt in PROMPTS[1:]]
        assert all(shorter < longer for shorter, longer in pairwise(by_prompt))


@every_tier
def test_a_sequence_more_never_makes_a_step_shorter(tier: Hardware) -> None:
    law = StepTime(tier)
    for longest in (1024, 65_536):
        for prompt in (1, 512):
            times = [
                law.with_prefill(prompt, prompt * prompt / 2, longest, n, longest + 16 * (n - 1))
                for n in range(1, 50)
            ]
            assert all(shorter < longer for shorter, longer in pairwise(times))


@every_tier
def test_a_mixed_step_is_neither_faster_than_its_parts_nor_than_the_longer_one(
    tier: Hardware,
) -> None:
    for prompt in PROMPTS[1:]:
        for sequences in BATCHES[1:]:
            for length in LENGTHS:
                kv_tokens = sequences * length
                together = step_s(tier, prompt, 0, sequences, kv_tokens)
                alone = step_s(tier, prompt, 0, 0, 0)
                decodes = step_s(tier, 0, 0, sequences, kv_tokens)
                assert together > alone
                # Prompts and decodes are fitted apart, so that one token may err a little.
                assert together > 0.9 * decodes


def lone_turn(tier: Hardware, tokens: int, output: int, placement: Placement) -> Cluster:
    group = EngineSpec(
        role=Role.MIXED,
        hardware="tier",
        count=2,
        token_budget=2048,
        max_sequences=8,
        kv_capacity_tokens=65_536,
        block_tokens=16,
    )
    spec = ClusterSpec("lone", {"tier": tier}, (group,), NETWORK, 2048, "tier")
    plan = conversation(0.0, (tokens, tokens, output, 0.0))
    return play(spec, NO_RESERVATION, [plan], [placement])


def e2e_s(cluster: Cluster) -> float:
    return times(cluster, TurnFinished)[0, 0] - times(cluster, TurnArrived)[0, 0]


@every_tier
@settings(max_examples=5, deadline=None)
@given(tokens=st.integers(1, 20_000), output=st.integers(1, 300))
def test_a_lone_disaggregated_turn_is_prefill_move_and_decode(
    tier: Hardware, tokens: int, output: int
) -> None:
    expected = 0.0
    for done in range(0, tokens, 2048):
        expected += step_s(tier, min(2048, tokens - done), done, 0, 0)
    link = NETWORK.same_node
    assert link is not None
    expected += link.exposed_s(tokens * tier.figures.kv_bytes_per_token)
    # The prompt's last token is computed once more where it is decoded, as the first decode step.
    expected += sum(step_s(tier, 0, 0, 1, tokens - 1 + step) for step in range(output))
    disaggregated = lone_turn(tier, tokens, output, Placement(0, 1))
    assert e2e_s(disaggregated) == pytest.approx(expected, rel=1e-9)
    colocated = lone_turn(tier, tokens, output, Placement(1, 1))
    assert e2e_s(colocated) <= e2e_s(disaggregated)
    for cluster in (colocated, disaggregated):
        idle_j = 2 * tier.power.idle_w * cluster.now
        assert idle_j <= cluster.meter() <= 2 * tier.power.cap_w * cluster.now
