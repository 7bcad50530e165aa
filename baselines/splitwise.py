"""Splitwise: a pool of prompt engines, a pool of token engines, and what both lend to a third.

Source: ``MixedPoolScheduler`` of github.com/Mutinifni/splitwise-sim at 3780880 (ISCA '24, arXiv
2311.18677). Each turn is a request of its own. Its prompt goes to the engine of the prompt pool
with fewest pending prompt tokens, or of the mixed pool if the first one's queue and the prompt
are longer than ``queue_tokens``; if that is so there too, the token engine that waits least joins
the mixed pool. Its answer goes to the engine with least memory in use of the token pool, or of the
mixed pool if the first one has no room; if none there has either, the prompt engine with least
memory in use joins the mixed pool. If no pool has an engine left, all are equals. An engine leaves
the mixed pool as soon as it is idle. KV always moves, unless both engines are one.

What differs: memory there counts the answer's length, which nobody knows; here it is the prompt's
KV and what is known to be held. Prefixes stay cached, and no history is pulled back. There is no
door: turns wait at their engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from conserve_gym import rules
from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads


class Splitwise:
    """Keeps prompts and answers apart until one side is full.

    Args:
        prompt_engines: Engines of the prompt pool; all others are token engines.
        queue_tokens: Prompt tokens of a queue, with the turn's own, above which it is too long.
    """

    def __init__(self, prompt_engines: Iterable[int], *, queue_tokens: int) -> None:
        """Let every engine do both, and every turn be for itself."""
        self.name = "splitwise"
        self.deployment = Deployment(
            all_mixed=True,
            reservation=Reservation.NONE,
            decides_every_turn=True,
            pulls_history=False,
        )
        self._prompt_engines = frozenset(prompt_engines)
        self._queue_tokens = queue_tokens
        self._mixed: set[int] = set()

    def reset(self, seed: int) -> None:
        """Empty the mixed pool."""
        self._mixed = set()

    def decide(self, observation: Observation) -> Placement:
        """Choose both engines for this turn, and lend to the mixed pool where that is needed."""
        engines = observation.fleet.decoders
        in_flight = observation.engine_field("turns_in_flight").tolist()
        self._mixed = {engine for engine in self._mixed if in_flight[engine]}
        apart = [engine for engine in engines if engine not in self._mixed]
        prompt_pool = [engine for engine in apart if engine in self._prompt_engines]
        token_pool = [engine for engine in apart if engine not in self._prompt_engines]
        mixed_pool = sorted(self._mixed)

        prefill_at = self._short_queue(observation, prompt_pool, mixed_pool)
        decode_at = self._with_room(observation, token_pool, mixed_pool)
        if prefill_at is None and token_pool:
            prefill_at = rules.least_waiting(observation, token_pool)
            self._mixed.add(prefill_at)
        if decode_at is None and prompt_pool:
            decode_at = rules.most_free(observation, prompt_pool)
            self._mixed.add(decode_at)
        if prefill_at is None or decode_at is None:
            prefill_at = decode_at = rules.least_waiting(observation, engines)
        return Placement(prefill_at, decode_at)

    def _short_queue(self, observation: Observation, *pools: Sequence[int]) -> int | None:
        """Return the engine that waits least of the first pool where it does not wait too long."""
        for pool in filter(None, pools):
            engine = rules.least_waiting(observation, pool)
            waiting = observation.of_engine("prompt_in_flight", engine)
            uncached = observation["prompt"] - observation.of_engine("holds", engine)
            if not waiting or waiting + uncached <= self._queue_tokens:
                return engine
        return None

    def _with_room(self, observation: Observation, *pools: Sequence[int]) -> int | None:
        """Return the engine with most free KV of the first pool where that is enough."""
        for pool in filter(None, pools):
            engine = rules.most_free(observation, pool)
            if observation.free_kv_tokens[engine] > observation["prompt"]:
                return engine
        return None


BASELINES = {
    "splitwise": Baseline(
        lambda site, **parameters: Splitwise(site.prefillers, **parameters),
        Reads.BOOKKEEPING,
        "Splitwise, arXiv 2311.18677 (mixed pool)",
        {"queue_tokens": Parameter(8192, 1024, 262_144, logarithmic=True)},
    )
}
