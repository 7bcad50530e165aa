"""Predicted output: the pair of engines where the turn is predicted to end first.

Source: RouteBalance (arXiv 2606.17949; github.com/AKafakA/route-balance), which predicts a
request's output L and takes T = tpot (d / b + L) at an instance that decodes b requests with d
tokens to come. Its code counts d / b, the wait for a slot, only where the batch is full: else a
request joins at once and T = tpot L. Turns here are placed only where there is room, so it is
always the latter.

What the others have yet to put out shapes tpot instead: of each turn that the policy has placed,
its predicted output less what the time since then has allowed (RouteBalance reckons like that too),
and the batch shrinks as they end. Turns that run longer than predicted count to the end. To the
decode comes the estimated TTFT, at the decoder itself or by way of the least loaded prefiller, with
history pulled to where it is needed. Every engine with room is a candidate; the smallest sum wins.

What differs: RouteBalance routes single requests to models of different quality, and predicts with
an embedding of the prompt's text and a learned tpot; there are no texts here, ``output_predictor``
says what is used instead and how far it errs, and tpot is the profile's. Its weights for quality
and cost have no meaning here.
"""

from __future__ import annotations

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
    kv_tokens: int

    def left(self, now: float) -> float:
        """Return the tokens that are believed to come yet."""
        return self.output_tokens - max(now - self.first_token_s, 0.0) / self.tpot_s


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
        self._site = site
        self._costs = TurnCosts(site, pulls_history=True)
        self._predictor = predictor
        self._running: dict[int, _Running] = {}

    def reset(self, seed: int) -> None:
        """Forget what runs."""
        self._predictor.reset()
        self._running = {}

    def decide(self, observation: Observation) -> Placement:
        """Choose the pair of engines with the earliest predicted end."""
        now, costs = observation.time, self._costs
        output_tokens = self._predictor.expected_output(observation)
        self._running.pop(observation.conversation, None)
        self._running = {c: turn for c, turn in self._running.items() if turn.left(now) > 0.0}
        home = rules.home_decoder(observation)
        ends: dict[Placement, tuple[float, float]] = {}  # TTFT, decode
        for decode_at in (home, *observation.fleet.decoders):
            if decode_at != home and not observation.open_to[decode_at]:
                continue
            decode_s = self._decode_s(observation, decode_at, output_tokens)
            local = Placement(decode_at, decode_at)
            ends[local] = (costs.local_ttft_s(observation, decode_at), decode_s)
            prefill_at = rules.prefiller_or_self(observation, decode_at)
            if prefill_at != decode_at:
                remote_s = costs.remote_ttft_s(observation, prefill_at, decode_at)
                ends[Placement(prefill_at, decode_at)] = (remote_s, decode_s)
        best = min(ends, key=lambda placement: sum(ends[placement]))
        ttft_s, decode_s = ends[best]
        self._running[observation.conversation] = _Running(
            best.decode_at,
            now + ttft_s,
            decode_s / output_tokens,
            output_tokens,
            int(observation["prompt"]),
        )
        return best

    def _decode_s(self, observation: Observation, decode_at: int, output_tokens: float) -> float:
        """Return how long an engine takes for an output beside its turns, as these end."""
        step_s = self._site.engines[decode_at].step_s
        running = [turn for turn in self._running.values() if turn.decode_at == decode_at]
        running.sort(key=lambda turn: turn.left(observation.time))
        sequences = int(observation.of_engine("pinned", decode_at))
        gone = max(len(running) - sequences, 0)  # ended before they were expected to
        capacity = observation.fleet.kv_capacity_tokens[decode_at]
        kv_tokens = round(observation.of_engine("kv_known", decode_at) * capacity)
        sequences, kv_tokens = sequences + 1, kv_tokens + int(observation["prompt"])
        seconds = done = 0.0
        for turn in running[gone:]:
            left = turn.left(observation.time)
            if left >= output_tokens:
                break
            seconds += (left - done) * step_s(0, 0, sequences, kv_tokens)
            done = left
            sequences, kv_tokens = sequences - 1, max(kv_tokens - turn.kv_tokens, 0)
        return seconds + (output_tokens - done) * step_s(0, 0, sequences, kv_tokens)


BASELINES = {
    "predicted_output": Baseline(
        lambda site, trained_on: PredictedOutput(site, learned(trained_on)),
        Reads.BOOKKEEPING,
        "arXiv 2606.17949 (RouteBalance), with a predictor of this project",
        {"trained_on": Parameter("all", choices=TRAINED_ON)},
    )
}
