"""Estimates of what a turn will take, from profiles and from what a router has seen.

Cost rules look these times up. Profiles say what a step takes; how many tokens wait is counted from
the ledger, or told by the engines where the deployment asks them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from conserve_gym.baselines.per_turn import uncached_tokens, waiting_prompts
from conserve_gym.observation import Observation
from conserve_gym.site import Site


class Batch(NamedTuple):
    """What an engine decodes.

    Attributes:
        sequences: Turns.
        kv_tokens: KV tokens that a step of them reads.
    """

    sequences: int
    kv_tokens: int


class Chunks(NamedTuple):
    """Steps that carry a prompt beside what an engine decodes.

    Attributes:
        seconds: What they take together.
        steps: How many there are.
    """

    seconds: float
    steps: int


class TurnCosts:
    """Costs of the turn at the door.

    Args:
        site: The cluster.
        pulls_history: Whether an engine copies what it lacks of the history, as in the deployment.
    """

    def __init__(self, site: Site, *, pulls_history: bool) -> None:
        """Take the profiles."""
        self._site = site
        self._pulls_history = pulls_history

    def queue_s(self, observation: Observation, engine: int) -> float:
        """Return how long an engine needs for the prompts that it has.

        They count as equally long, without the context that they come after. Of an engine that
        exports nothing a prompt counts as wholly waiting until it is computed.
        """
        exports = observation.exports
        waiting = (
            exports[engine].prompt_tokens
            if exports
            else int(observation.of_engine("prompt_in_flight", engine))
        )
        if waiting <= 0:
            return 0.0
        profile = self._site.engines[engine]
        prompts = max(waiting_prompts(observation, engine), 1)
        lone_s = profile.prefill_s(math.ceil(waiting / prompts), 0)
        # Short prompts share steps: only what exceeds the shortest step adds up.
        shortest_s = profile.step_s(1, 0)
        return shortest_s + prompts * max(lone_s - shortest_s, 0.0)

    def batch(self, observation: Observation, engine: int) -> Batch:
        """Return what an engine decodes; from the ledger, its turns count as equally large."""
        if observation.exports:
            export = observation.exports[engine]
            return Batch(export.decoding, export.kv_read_tokens)
        decoding = int(observation.of_engine("decoding", engine))
        capacity = observation.fleet.kv_capacity_tokens[engine]
        held = observation.of_engine("kv_known", engine) * capacity
        pinned = max(observation.of_engine("pinned", engine), 1.0)
        return Batch(decoding, round(held * min(decoding / pinned, 1.0)))

    def decode_step_s(self, observation: Observation, engine: int) -> float:
        """Return a decode step of an engine with the turn at the door among its others."""
        sequences, kv_tokens = self.batch(observation, engine)
        prompt = int(observation["prompt"])
        return self._site.engines[engine].step_s(0, 0, sequences + 1, kv_tokens + prompt)

    def lone_decode_step_s(self, engine: int, context_tokens: int) -> float:
        """Return a decode step of one turn alone."""
        return self._site.engines[engine].step_s(0, 0, 1, context_tokens)

    def lone_prefill_s(self, observation: Observation, engine: int) -> float:
        """Return the turn's prefill alone on an engine that holds its history."""
        new = int(observation["new"])
        return self._site.engines[engine].prefill_s(new, int(observation["prompt"]) - new)

    def pull_s(self, observation: Observation, engine: int) -> float:
        """Return how long an engine waits for the history that it lacks; 0 if it computes that."""
        home = observation.home
        lacking = uncached_tokens(observation, engine) - int(observation["new"])
        if not self._pulls_history or home in (-1, engine) or lacking <= 0:
            return 0.0
        return self._site.network.transfer_s(home, engine, lacking)

    def prefill_s(self, observation: Observation, engine: int) -> float:
        """Return the turn's prefill on an engine that decodes nothing beside it."""
        tokens, context = self._to_compute(observation, engine)
        return self._site.engines[engine].prefill_s(tokens, context)

    def chunks(self, observation: Observation, engine: int, chunk_tokens: int) -> Chunks:
        """Return the turn's prefill in chunks beside what the engine decodes."""
        profile = self._site.engines[engine]
        sequences, kv_tokens = self.batch(observation, engine)
        tokens, done = self._to_compute(observation, engine)
        end, seconds, steps = done + tokens, 0.0, 0
        while done < end:
            chunk = min(end - done, chunk_tokens)
            seconds += profile.step_s(chunk, done, sequences, kv_tokens)
            done += chunk
            steps += 1
        return Chunks(seconds, steps)

    def longest_step_s(self, observation: Observation, engine: int, chunk_tokens: int) -> float:
        """Return the longest step of such chunks: a full one at the end of the prompt."""
        tokens, _ = self._to_compute(observation, engine)
        chunk = min(tokens, chunk_tokens)
        context = int(observation["prompt"]) - chunk
        return self._site.engines[engine].step_s(chunk, context, *self.batch(observation, engine))

    def local(self, observation: Observation, engine: int) -> Chunks:
        """Return the turn's prefill where it is decoded, in chunks of that engine's own budget."""
        sequences, _ = self.batch(observation, engine)
        budget = self._site.engines[engine].token_budget - sequences
        return self.chunks(observation, engine, max(budget, 1))

    def stall_s(self, observation: Observation, engine: int, chunks: Chunks) -> float:
        """Return by how much such steps put off each turn that the engine decodes."""
        sequences, kv_tokens = self.batch(observation, engine)
        if not sequences:
            return 0.0
        decode_s = self._site.engines[engine].step_s(0, 0, sequences, kv_tokens)
        return max(chunks.seconds - chunks.steps * decode_s, 0.0)

    def local_ttft_s(self, observation: Observation, decode_at: int) -> float:
        """Return the time to the first token if the prompt stays where it is decoded."""
        return (
            self.queue_s(observation, decode_at)
            + self.pull_s(observation, decode_at)
            + self.local(observation, decode_at).seconds
        )

    def remote_ttft_s(self, observation: Observation, prefill_at: int, decode_at: int) -> float:
        """Return the time to the first token by way of a prefiller, KV moved."""
        lacking = uncached_tokens(observation, decode_at)
        return (
            self.queue_s(observation, prefill_at)
            + self.pull_s(observation, prefill_at)
            + self.prefill_s(observation, prefill_at)
            + self._site.network.transfer_s(prefill_at, decode_at, lacking)
        )

    def _to_compute(self, observation: Observation, engine: int) -> tuple[int, int]:
        """Return tokens to compute on an engine, and the cached ones that they come after."""
        prompt = int(observation["prompt"])
        lacking = uncached_tokens(observation, engine)
        tokens = int(observation["new"]) if self._pulls_history else lacking
        tokens = max(min(tokens, lacking), 1)
        return tokens, prompt - tokens
