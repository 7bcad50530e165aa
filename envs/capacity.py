"""How many conversations a second a cluster can serve at most, about and at once.

What a conversation asks for is averaged over a workload once; a cluster's own step law then says
how many of these a second keep its engines busy, or fill its KV pools, with batches as large as the
SLO of their steps and the pools allow. It knows no queues, and no steps of prompts and decodes
together: it makes loads comparable between clusters and workloads, and no more.

Offered four times that load, ConServe ended the middle three fifths of 255 conversations at 0.66 to
1.65 of it, and Collocated at 0.76 to 2.8, in 13 pairs of a packaged cluster and workload; half of
the 26 lie between 0.9 and 1.5. Episodes of 255 conversations end before a queue has grown: with
miniswe nearly all meet their SLOs at 1.3 of it, and 56 to 99 % at 1.6.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conserve_gym.deployment import Deployment
from conserve_gym.envs.serving.cluster_spec import ClusterSpec, EngineSpec
from conserve_gym.envs.serving.step_profile import StepProfile
from conserve_gym.envs.workloads.workload import Workload
from conserve_gym.metrics import SLO_FACTOR

_CONVERSATIONS = 500  # sampled: the means of embedded workloads then err by less than a tenth
_STRATA = 16


@dataclass(frozen=True)
class Prompt:
    """Prompts of about one length.

    Attributes:
        count: How many a conversation has.
        new_tokens: To be computed.
        context_tokens: Cached tokens that they come after.
    """

    count: float
    new_tokens: int
    context_tokens: int


@dataclass(frozen=True)
class Demand:
    """What a conversation asks for on average.

    Attributes:
        first: Its first prompt, by length.
        later: Its later prompts, by length.
        output_tokens: Its output.
        output_kv: KV tokens that its decode steps read in all.
        idle_kv_s: KV tokens times the seconds that they lie idle between turns.
    """

    first: tuple[Prompt, ...]
    later: tuple[Prompt, ...]
    output_tokens: float
    output_kv: float
    idle_kv_s: float

    @classmethod
    def of(cls, workload: Workload) -> Demand:
        """Return the means of a workload's draws; the same ones whenever it is asked."""
        rng = np.random.default_rng(0)
        drawn = workload.draw(rng)
        while len(drawn) < _CONVERSATIONS:
            drawn += workload.draw(rng)
        share = 1.0 / len(drawn)
        later = [turn for turns in drawn for turn in turns[1:]]
        every = [turn for turns in drawn for turn in turns]
        held = [t.input_tokens + t.output_tokens for turns in drawn for t in turns[:-1]]
        return cls(
            _strata([turns[0].input_tokens for turns in drawn], [0] * len(drawn), share),
            _strata(
                [turn.new_tokens for turn in later],
                [turn.input_tokens - turn.new_tokens for turn in later],
                share,
            ),
            share * sum(turn.output_tokens for turn in every),
            share * sum(t.output_tokens * (t.input_tokens + t.output_tokens / 2) for t in every),
            share * sum(kv * t.gap_s for kv, t in zip(held, later, strict=True)),
        )

    @classmethod
    def mixed(cls, parts: Sequence[Demand], shares: Sequence[float]) -> Demand:
        """Return the demand of a mixture of workloads."""

        def prompts(field: str) -> tuple[Prompt, ...]:
            return tuple(
                Prompt(share * prompt.count, prompt.new_tokens, prompt.context_tokens)
                for part, share in zip(parts, shares, strict=True)
                for prompt in getattr(part, field)
            )

        def mean(field: str) -> float:
            return float(np.dot(shares, [getattr(part, field) for part in parts]))

        return cls(
            prompts("first"),
            prompts("later"),
            mean("output_tokens"),
            mean("output_kv"),
            mean("idle_kv_s"),
        )


def _strata(new: Sequence[int], context: Sequence[int], share: float) -> tuple[Prompt, ...]:
    """Return prompts of about the same new tokens as one, with how many a conversation has."""
    order = np.argsort(new, kind="stable")
    lengths, contexts = np.array(new)[order], np.array(context)[order]
    return tuple(
        Prompt(share * len(part), round(part.mean()), round(contexts[at].mean()))
        for at in np.array_split(np.arange(len(order)), _STRATA)
        if len(part := lengths[at])
    )


def capacity(spec: ClusterSpec, deployment: Deployment, demand: Demand) -> float:
    """Return about how many conversations a second a cluster serves at most.

    First prompts may be computed anywhere, everything else where conversations are decoded; the KV
    pools there hold what is decoded, and what lies idle between turns.
    """
    engines = spec.deployed(deployment)
    costs = {engine: _costs(spec, engine, demand) for engine in set(engines)}
    decoders = [costs[engine] for engine in engines if engine.role.decodes]
    apart = [costs[engine] for engine in engines if not engine.role.decodes]
    prefilled_apart = sum(1.0 / first_s for first_s, _, _ in apart)
    # Decoders share the work by their speeds, and compute what prefill engines cannot.
    first_s = len(decoders) / sum(1.0 / first_s for first_s, _, _ in decoders)
    rest_s = len(decoders) / sum(1.0 / rest_s for _, rest_s, _ in decoders)
    computed = min(
        len(decoders) / rest_s,
        (len(decoders) + prefilled_apart * first_s) / (first_s + rest_s),
    )
    held = sum(pool for _, _, pool in decoders)
    return min(computed, held)


def _costs(spec: ClusterSpec, engine: EngineSpec, demand: Demand) -> tuple[float, float, float]:
    """Return an engine's seconds a conversation, and conversations a second that its pool holds.

    The seconds are those of the first prompt, and those of the rest.
    """
    profile = StepProfile(spec.tier(engine), engine.token_budget)
    first_s = _prefill_s(profile, demand.first)
    later_s = _prefill_s(profile, demand.later)
    context = demand.output_kv / demand.output_tokens

    def step_s(batch: int) -> float:
        return profile.step_s(0, 0, batch, round(batch * context))

    most = max(1, min(engine.max_sequences, int(engine.kv_capacity_tokens / context)))
    batch = max(1, bisect_right(range(1, most + 1), SLO_FACTOR * step_s(1), key=step_s))
    tbt = step_s(batch)
    rest_s = later_s + demand.output_tokens * tbt / batch
    kv_s = demand.output_kv * tbt + demand.idle_kv_s
    return first_s, rest_s, engine.kv_capacity_tokens / kv_s


def _prefill_s(profile: StepProfile, prompts: Sequence[Prompt]) -> float:
    return sum(
        prompt.count * profile.prefill_s(max(1, prompt.new_tokens), prompt.context_tokens)
        for prompt in prompts
    )
