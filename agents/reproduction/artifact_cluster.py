"""A cluster run by the artifact's client: its way of waiting for room, and its detours."""

from __future__ import annotations

from collections.abc import Sequence

from conserve_gym.agents.reproduction.detours import Detours
from conserve_gym.agents.reproduction.polling_door import PollingDoor
from conserve_gym.deployment import Deployment
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.timeline import Timeline
from conserve_gym.envs.workloads.conversation import Conversation


class ArtifactCluster(Cluster):
    """A cluster with a door at which conversations try again and again.

    Args:
        door: That door.
        detours: Where misrouted turns wait before they reach their decoder; None misroutes nothing.
            The rest as for every cluster.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        deployment: Deployment,
        conversations: Sequence[Conversation],
        timeline: Timeline,
        door: type[PollingDoor],
        detours: Detours | None,
    ) -> None:
        """Build the cluster."""
        super().__init__(spec, deployment, conversations, timeline, door)
        self._detours = detours

    def _dispatch(self, conversation: int, turn: int, *, placed: bool) -> None:
        if placed:
            self._count(conversation, self.conversations[conversation].turns[turn].output_tokens)
        super()._dispatch(conversation, turn, placed=placed)

    def _gap_s(self, conversation: int, turn: int) -> float:
        played = self.conversations[conversation]
        gap_s = super()._gap_s(conversation, turn)
        if not self._deployment.decides_every_turn:
            before, this = played.turns[turn - 1 : turn + 1]
            held = before.input_tokens + before.output_tokens
            self._count(conversation, this.input_tokens + this.output_tokens - held)
        if self._detours is not None:
            gap_s += self._detours.pause_s(self.now, conversation, played, turn)
        return gap_s

    def _count(self, conversation: int, tokens: int) -> None:
        assert isinstance(self._door, PollingDoor)
        self._door.grow(conversation, tokens)
