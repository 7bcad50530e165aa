"""The paper's AMPD emulation: a share of later turns takes a detour over the prefill engine.

It is ConServe with KV counted by turn, and no predictor: which turns are misrouted is drawn. In the
artifact (``conversation.py``, ``virtual_prefiller.py``, ``per_turn_cost_model.py``; see
``recording``) the decoders alone run, and a misrouted turn waits there for what the detour would
take:

- until every first prompt that is then at the recorded prefiller has been served, queue included;
- and ``detour_s``: history to the prefiller, a step on the cached prompt, new KV back, bookkeeping.

The step also blocks the recorded prefiller; first prompts that come meanwhile are put off, which is
added to their conversations' latencies afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from conserve_gym.agents.reproduction.recording import Draw
from conserve_gym.deployment import Deployment
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.workloads.conversation import Conversation

OVERCOUNTED_TOKENS = 25_000
"""History that the artifact counts too much: it starts at the length of a shared text of at least
25,000 tokens (``prepare_compound_prompts.py``), of which a conversation's prompt is a part, and
then adds that prompt."""


Turns = frozenset[tuple[int, int]]
"""Turns by place of their conversation in order of arrival, and index."""


def misrouted(drawn: Draw, share: float) -> Turns:
    """Return which turns are misrouted, drawn in the order of the conversations' numbers.

    Args:
        drawn: The conversations.
        share: Share of the later turns.
    """
    rng = random.Random(drawn.drawn_by)
    by_number = sorted(range(len(drawn.numbers)), key=drawn.numbers.__getitem__)
    return frozenset(
        (place, turn)
        for place in by_number
        for turn in range(1, len(drawn.turns[place]))
        if rng.random() < share
    )


def cached_prefill_s(tokens: float) -> float:
    """Return what a step on a cached prompt takes; measured by the artifact's authors."""
    return 14.5e-3 if tokens <= 12_000 else 5.6e-3 + 0.95e-6 * tokens


def detour_s(history_tokens: float, new_tokens: float) -> float:
    """Return what a detour takes without its queue, by the artifact's constants.

    Transfers are fitted to measurements; bookkeeping, 2 ms and 5 us a block on both sides, is
    assumed by its authors.
    """

    def transfer_s(tokens: float) -> float:
        return 4.849e-3 if tokens <= 1024 else 5.27e-3 + 0.985e-6 * tokens

    tokens = history_tokens + new_tokens
    bookkeeping_s = 2 * (2e-3 + 5e-6 * tokens / 16)
    return (
        transfer_s(history_tokens)
        + cached_prefill_s(tokens)
        + transfer_s(new_tokens)
        + bookkeeping_s
    )


class VirtualPrefiller:
    """The recorded prefiller, as far as misrouted turns meet and block it.

    Args:
        came_s: When each first prompt came to it.
        left_s: When its KV had reached a decoder.
    """

    def __init__(self, came_s: Sequence[float], left_s: Sequence[float]) -> None:
        """Start without blocks."""
        self._came = np.asarray(came_s)
        self._stay = np.asarray(left_s) - self._came
        self._blocks: list[tuple[float, float]] = []

    def block(self, now: float, seconds: float) -> float:
        """Let a misrouted turn come.

        Args:
            now: When it comes.
            seconds: How long it blocks the prefiller once all prompts there have left.

        Returns:
            How long it waits for that.
        """
        came = self._put_off()
        left = came + self._stay
        here = (came <= now) & (now < left)
        begins = float(left[here].max()) if here.any() else now
        self._blocks.append((begins, begins + seconds))
        self._blocks.sort()
        return begins - now

    def delays_s(self) -> list[float]:
        """Return by how much each first prompt has been put off."""
        delays: list[float] = (self._put_off() - self._came).tolist()
        return delays

    def _put_off(self) -> np.ndarray:
        came = self._came.copy()
        for begins, ends in self._blocks:
            came[(begins <= came) & (came < ends)] = ends
        return came


class Detours:
    """What the artifact's misrouted turns wait for.

    Args:
        turns: Those that are misrouted.
        prefiller: Where they queue.
        overcounted_tokens: History that is counted too much.

    Attributes:
        seconds: What all detours so far took without their queues.
    """

    def __init__(
        self,
        turns: Turns,
        prefiller: VirtualPrefiller,
        overcounted_tokens: int,
    ) -> None:
        """Start without detours."""
        self._turns = turns
        self._prefiller = prefiller
        self._overcounted_tokens = overcounted_tokens
        self.seconds = 0.0

    def delays_s(self) -> list[float]:
        """Return by how much misrouted turns have put each first prompt off."""
        return self._prefiller.delays_s()

    def pause_s(self, now: float, place: int, conversation: Conversation, turn: int) -> float:
        """Return how long a turn waits before it reaches its decoder."""
        if (place, turn) not in self._turns:
            return 0.0
        before, this = conversation.turns[turn - 1 : turn + 1]
        held = before.input_tokens + before.output_tokens
        new_tokens = max(this.input_tokens - held, 1)
        history = held + self._overcounted_tokens
        queue_s = self._prefiller.block(now, cached_prefill_s(history + new_tokens))
        seconds = detour_s(history, new_tokens)
        self.seconds += seconds
        return queue_s + seconds


class MisroutingCluster(Cluster):
    """A whole cluster where misrouted turns really go to the prefill engine.

    They queue there, pull what it lacks of the history, delay whoever comes after them, and their
    KV moves home.

    Args:
        misrouted_turns: Which they are; the rest as for every cluster.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        deployment: Deployment,
        conversations: Sequence[Conversation],
        misrouted_turns: Turns,
    ) -> None:
        """Build the cluster."""
        super().__init__(spec, deployment, conversations)
        self._misrouted_turns = misrouted_turns

    def _dispatch(self, conversation: int, turn: int, *, placed: bool) -> None:
        is_misrouted = (conversation, turn) in self._misrouted_turns
        super()._dispatch(conversation, turn, placed=placed or is_misrouted)
