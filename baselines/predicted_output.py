"""Predicted output: the pair of engines where the turn is predicted to end first.

Source: RouteBalance (arXiv 2606.17949), whose latency term is T = tpot (d / b + L) for an output of
predicted length L at an instance that decodes b turns with d tokens still to come. d is reckoned:
of each turn that the policy has placed, its predicted output less what the time since then has
allowed. To T comes the estimated TTFT, at the decoder itself or by way of the least loaded
prefiller, with history pulled to where it is needed. Every engine with room is a candidate; the
smallest sum wins.

What differs: RouteBalance routes single requests to models of different quality and predicts with
an embedding of the prompt's text; there are no texts here, and ``output_predictor`` says what is
used instead and how far it errs. Its weights for quality and cost have no meaning here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from conserve_gym import rules
from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.baselines.output_predictor import TRAINED_ON, OutputPredictor, learned
from conserve_gym.baselines.turn_costs import TurnCosts
from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads
from conserve_gym.site import Site


class _Running(NamedTuple):
    """A turn that was placed, and how it is believed to go on."""

    decode_at: int
    first_token_s: float
    tpot_s: float
    output_tokens: float


class PredictedOutput:
    """Places each turn where it is predicted to end first.

    Args:
        site: The cluster.
        predictor: Tells outputs; one that knows them makes this policy see the future.
    """

    def __init__(self, site: Site, predictor: OutputPredictor) -> None:
        """Let every turn pass the door."""
        self.name = "predicted_output"
        self.deployment = Deployment(decides_every_turn=True)
        self._costs = TurnCosts(site, pulls_history=True)
        self._predictor = predictor
        self._running: dict[int, _Running] = {}

    def reset(self, seed: int) -> None:
        """Forget what runs."""
        self._predictor.reset()
        self._running = {}

    def decide(self, observation: Observation) -> Placement:
        """Choose the pair of engines with the earliest predicted end."""
        output_tokens = self._predictor.expected_output(observation)
        self._running.pop(observation.conversation, None)
        to_come = self._to_come(observation)
        home = rules.home_decoder(observation)
        best, best_s, running = Placement(home, home), math.inf, None
        for decode_at in (home, *observation.fleet.decoders):
            if decode_at != home and not observation.open_to[decode_at]:
                continue
            batch = max(self._costs.batch(observation, decode_at).sequences, 1)
            tpot_s = self._costs.decode_step_s(observation, decode_at)
            decode_s = tpot_s * (to_come[decode_at] / batch + output_tokens)
            prefill_at = rules.prefiller_or_self(observation, decode_at)
            for at in dict.fromkeys((decode_at, prefill_at)):
                ttft_s = (
                    self._costs.local_ttft_s(observation, decode_at)
                    if at == decode_at
                    else self._costs.remote_ttft_s(observation, at, decode_at)
                )
                if ttft_s + decode_s < best_s:
                    best, best_s = Placement(at, decode_at), ttft_s + decode_s
                    first_token_s = observation.time + ttft_s
                    running = _Running(decode_at, first_token_s, tpot_s, output_tokens)
        assert running is not None
        self._running[observation.conversation] = running
        return best

    def _to_come(self, observation: Observation) -> list[float]:
        """Return the tokens that each engine is believed to have yet to decode."""
        to_come = [0.0] * len(observation.fleet.roles)
        for conversation, turn in list(self._running.items()):
            passed_s = max(observation.time - turn.first_token_s, 0.0)
            left = turn.output_tokens - passed_s / turn.tpot_s
            if left > 0.0:
                to_come[turn.decode_at] += left
            else:
                del self._running[conversation]
        return to_come


BASELINES = {
    "predicted_output": Baseline(
        lambda site, trained_on: PredictedOutput(site, learned(trained_on)),
        Reads.BOOKKEEPING,
        "arXiv 2606.17949 (RouteBalance), with a predictor of this project",
        {"trained_on": Parameter("all", choices=TRAINED_ON)},
    )
}
