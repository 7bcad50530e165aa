"""SMetric: a session stays with its engine until that is overloaded or would answer too late.

Source: arXiv 2607.08565, with the defaults of its public ports. Each turn goes, prefill and
decode, to one engine. A first turn goes to the least loaded one. A later turn goes to the engine
that holds most of its prompt, unless that is no more than ``hit_ratio`` of it, the engine's load is
more than ``overload`` times the mean, or the turn would not have its first token within the SLO
there but would somewhere else; then it goes to the least loaded one too. The SLO is
1 s + 62.5 ms for each 1,000 prompt tokens, times ``slack``.

The load of an engine is prefill work and context of its turns in flight: here all tokens that they
are known to hold, and their uncached prompts again. In a small fleet with little in flight one long
turn overloads an engine; with ``overload`` at the number of engines none ever is. Time to the first
token is the prefill of what waits there and of the turn's own uncached tokens:
c_lin n + c_attn n (L - n / 2) for n of L prompt tokens, with the coefficients fitted to each
engine's profile, in the role that the cluster gives it. Prompts count as waiting until their first
token is seen, first come first served.

A plain router moves no KV, so what an engine lacks of the history is computed again; and it has no
door: turns wait at their engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.baselines.tie_breaker import TieBreaker
from conserve_gym.costs import fitted_prefill
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.observation import FloatArray, Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads
from conserve_gym.profiles import EngineProfile

SLO_S = 1.0
SLO_S_PER_TOKEN = 62.5e-6


class PrefillCost:
    """Seconds of a prefill: c_lin n + c_attn n (L - n / 2).

    Args:
        profile: Of the engine.
    """

    def __init__(self, profile: EngineProfile) -> None:
        """Fit the coefficients."""
        self._linear, self._attention = fitted_prefill(profile)

    def __call__(self, prompt: float, cached: float) -> float:
        """Return the seconds of a prompt of which so many tokens are cached."""
        new = prompt - cached
        return new * (self._linear + self._attention * (prompt - new / 2))


class Backlog:
    """Prefill seconds of the prompts that wait at an engine.

    Of those sent there, the youngest that add up to the tokens in flight: they are computed in
    order.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._sent: deque[tuple[float, float]] = deque()  # tokens, seconds
        self._tokens = 0.0

    def add(self, tokens: float, seconds: float) -> None:
        """Note a prompt that is sent there."""
        self._sent.append((tokens, seconds))
        self._tokens += tokens

    def seconds(self, tokens_in_flight: float) -> float:
        """Return the seconds of what waits, given the tokens of it."""
        while self._sent and self._tokens - self._sent[0][0] >= tokens_in_flight:
            self._tokens -= self._sent.popleft()[0]
        return sum(seconds for _, seconds in self._sent)


class SMetric:
    """Keeps a session where its prefix is while that engine can serve it in time.

    Args:
        profiles: Of each engine.
        overload: Multiple of the mean load above which an engine is overloaded.
        hit_ratio: Share of the prompt above which an engine that holds it is the session's.
        slack: Multiple of the SLO that the first token may take.
    """

    def __init__(
        self,
        profiles: Sequence[EngineProfile],
        *,
        overload: float,
        hit_ratio: float,
        slack: float,
    ) -> None:
        """Take all engines as equals, and every turn for itself."""
        self.name = "smetric"
        self.deployment = Deployment(
            all_mixed=True,
            reservation=Reservation.NONE,
            decides_every_turn=True,
            pulls_history=False,
        )
        self._costs = [PrefillCost(profile) for profile in profiles]
        self._overload = overload
        self._hit_ratio = hit_ratio
        self._slack = slack
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Forget what was sent where."""
        self._backlogs = [Backlog() for _ in self._costs]
        self._ties = TieBreaker()

    def decide(self, observation: Observation) -> Placement:
        """Choose the session's engine, or the least loaded."""
        prompt = observation["prompt"]
        holds = observation.engine_field("holds").tolist()
        in_flight = observation.engine_field("prompt_in_flight").tolist()
        own = [cost(prompt, held) for cost, held in zip(self._costs, holds, strict=True)]
        ttft = [
            backlog.seconds(tokens) + seconds
            for backlog, tokens, seconds in zip(self._backlogs, in_flight, own, strict=True)
        ]
        load = _load(observation)
        engine = self._session_engine(observation, holds, ttft, load)
        if engine is None:
            engine = self._ties.least(observation.fleet.decoders, load.tolist().__getitem__)
        self._backlogs[engine].add(prompt - holds[engine], own[engine])
        return Placement(engine, engine)

    def _session_engine(
        self, observation: Observation, holds: list[float], ttft: list[float], load: FloatArray
    ) -> int | None:
        engines, prompt = observation.fleet.decoders, observation["prompt"]
        engine = max(engines, key=holds.__getitem__)
        slo_s = self._slack * (SLO_S + SLO_S_PER_TOKEN * prompt)
        too_late = ttft[engine] > slo_s and any(ttft[other] <= slo_s for other in engines)
        keeps = (
            observation["turn"] > 0
            and holds[engine] > self._hit_ratio * prompt
            and load[engine] <= self._overload * load.mean()
            and not too_late
        )
        return engine if keeps else None


def _load(observation: Observation) -> FloatArray:
    """Return the tokens of each engine's turns in flight, those still to prefill twice."""
    held = np.array(observation.fleet.kv_capacity_tokens) - observation.free_kv_tokens
    load: FloatArray = held + observation.engine_field("prompt_in_flight")
    return load


BASELINES = {
    "smetric": Baseline(
        lambda site, **parameters: SMetric(site.engines, **parameters),
        Reads.BOOKKEEPING,
        "arXiv 2607.08565",
        {
            "overload": Parameter(2.0, 1.0, 8.0, logarithmic=True),
            "hit_ratio": Parameter(0.5, 0.0, 1.0, most=1.0),
            "slack": Parameter(1.0, 0.1, 10.0, logarithmic=True),
        },
    )
}
