"""Cache-aware routing as in SGLang's router: the best match, unless queues are uneven.

Source: ``cache_aware`` of github.com/sgl-project/sglang (sgl-router at 026f853, with the defaults
of its command line). Each turn goes, prefill and decode, to one engine. If the longest queue is
more than ``imbalance_turns`` longer than the shortest and more than ``imbalance_ratio`` times as
long, it goes to the shortest; else to the engine that holds most of its prompt, if that is more
than ``match`` of it; else to the engine with the smallest tree.

What differs: the router there matches the text of earlier requests; here it matches tokens, the
answers among them, as this project's index counts them. Sizes of trees are counted as there: every
token of every prompt sent to an engine, once, and never forgotten (its limit of 64 million
characters is beyond an episode). A plain router moves no KV, so what an engine lacks of the history
is computed again; and it has no door: turns wait at their engine.
"""

from __future__ import annotations

from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads


class CacheAware:
    """Sends each turn where its prefix is, while queues are even.

    Args:
        match: Share of the prompt that an engine must hold to be preferred for it.
        imbalance_turns: Difference of queues above which they count as uneven.
        imbalance_ratio: Ratio of queues above which they count as uneven; both must be exceeded.
    """

    def __init__(self, *, match: float, imbalance_turns: int, imbalance_ratio: float) -> None:
        """Take all engines as equals, and every turn for itself."""
        self.name = "cache_aware"
        self.deployment = Deployment(
            all_mixed=True,
            reservation=Reservation.NONE,
            decides_every_turn=True,
            pulls_history=False,
        )
        self._match = match
        self._imbalance_turns = imbalance_turns
        self._imbalance_ratio = imbalance_ratio
        self._sent: dict[tuple[int, int], float] = {}  # engine, conversation: longest prompt
        self._tree_tokens: dict[int, float] = {}

    def reset(self, seed: int) -> None:
        """Empty the trees."""
        self._sent, self._tree_tokens = {}, {}

    def decide(self, observation: Observation) -> Placement:
        """Choose the engine, and note the prompt in its tree."""
        engine = self._choose(observation)
        branch, prompt = (engine, observation.conversation), observation["prompt"]
        gained = max(prompt - self._sent.get(branch, 0.0), 0.0)
        self._sent[branch] = self._sent.get(branch, 0.0) + gained
        self._tree_tokens[engine] = self._tree_tokens.get(engine, 0.0) + gained
        return Placement(engine, engine)

    def _choose(self, observation: Observation) -> int:
        engines = observation.fleet.decoders
        queues = observation.engine_field("turns_in_flight").tolist()
        longest, shortest = max(queues), min(queues)
        uneven = (
            longest - shortest > self._imbalance_turns
            and longest > self._imbalance_ratio * shortest
        )
        if uneven:
            return min(engines, key=queues.__getitem__)
        holds = observation.engine_field("holds").tolist()
        matched = max(engines, key=holds.__getitem__)
        if holds[matched] > self._match * observation["prompt"]:
            return matched
        return min(engines, key=lambda engine: self._tree_tokens.get(engine, 0.0))


BASELINES = {
    "cache_aware": Baseline(
        lambda site, **parameters: CacheAware(**parameters),
        Reads.BOOKKEEPING,
        "sgl-router of SGLang (cache_aware)",
        {
            "match": Parameter(0.3, 0.0, 1.0, most=1.0),
            "imbalance_turns": Parameter(64, 0, 256),
            "imbalance_ratio": Parameter(1.5, 1.0, 10.0, logarithmic=True),
        },
    )
}
