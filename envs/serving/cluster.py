"""A cluster that plays conversations and writes the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from conserve_gym.deployment import Deployment
from conserve_gym.envs.serving.clock import Call, Clock
from conserve_gym.envs.serving.cluster_spec import ClusterError, ClusterSpec
from conserve_gym.envs.serving.door import Door, HoldingDoor
from conserve_gym.envs.serving.engine import Engine
from conserve_gym.envs.serving.network import Network
from conserve_gym.envs.serving.network_spec import LinkSpec
from conserve_gym.envs.serving.request import Request
from conserve_gym.envs.serving.timeline import Move, Timeline
from conserve_gym.envs.workloads.conversation import Conversation
from conserve_gym.ledger import (
    ConversationEnded,
    FirstToken,
    KvMoved,
    Ledger,
    Metered,
    Placed,
    Prefilled,
    TurnArrived,
    TurnFinished,
)
from conserve_gym.observation import Observation
from conserve_gym.observer import Observer
from conserve_gym.placement import HOLD, Placement


class _KvCopy(NamedTuple):
    """KV that is on its way between engines.

    Attributes:
        request: Whose prompt it belongs to.
        source: Engine that holds it.
        target: Engine that gets it.
        tokens: How many tokens of it.
        lent: Idle tokens that the source keeps from being evicted until it has arrived.
        is_history: Whether the prompt needs it to be computed; else it is what was computed.
        began_s: When it was asked for.
        written: Whether the source, which stopped for it, is through with it.
    """

    request: Request
    source: int
    target: int
    tokens: int
    lent: int
    is_history: bool
    began_s: float
    written: bool = False


class Cluster:
    """Engines, a network and a door, from the first arrival to the last token.

    ``advance`` runs until a conversation stands at the open door; ``place`` says where it goes.
    ``copy.deepcopy`` gives a cluster with the same future, between any two of these calls.

    Args:
        spec: What the cluster is made of.
        deployment: How the arm runs it.
        conversations: The workload, in order of arrival.
        timeline: Where to write down what runs when; None writes nothing.
        door: How conversations wait for room.

    Attributes:
        ledger: What a scheduler has seen happen.
        fleet: Roles and capacities of the engines.
        engines: The engines; no policy may look into them.

    Raises:
        ClusterError: A conversation does not fit into the KV pools.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        deployment: Deployment,
        conversations: Sequence[Conversation],
        timeline: Timeline | None = None,
        door: type[Door] | None = None,
    ) -> None:
        """Build the engines and let the first conversation come."""
        self.spec = spec
        self.conversations = conversations
        self.ledger = Ledger()
        self.fleet = spec.fleet(deployment)
        self._deployment = deployment
        self._timeline = timeline
        self._peak_tokens = self._checked_peaks()
        self._clock = Clock()
        self.engines = [
            Engine(
                self._clock,
                spec.tier(engine),
                kv_capacity_tokens=engine.kv_capacity_tokens,
                block_tokens=engine.block_tokens,
                token_budget=engine.token_budget,
                max_sequences=engine.max_sequences,
                prefix_caching=deployment.prefix_caching,
                listener=self,
                track=timeline.tracks[i] if timeline else None,
            )
            for i, engine in enumerate(spec.deployed(deployment))
        ]
        self._nodes = spec.nodes
        self._network = Network(
            self._clock, spec.network, self._nodes, spec.kv_bytes_per_token, self._on_kv_moved
        )
        self.observer = Observer(self.ledger, self.fleet, deployment)
        if door is None:
            door = HoldingDoor if deployment.may_hold else Door
        self._door = door(self.fleet, deployment.reservation, self.observer)
        self._door_changed = True  # a turn has come or gone since the door was looked at
        self._placements: dict[int, Placement] = {}
        self._been_at: dict[int, list[int]] = {}  # conversation: engines, the last decoder last
        self._at_decoder: dict[int, int] = {}  # conversation: prompt tokens that its decoder has
        self._without_room: set[int] = set()  # prefill engines with prompts that found no room
        self._arrived = 0
        self._ended = 0
        self._schedule_arrival()

    # --- the clock ---

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return self._clock.now

    def advance(self) -> bool:
        """Run until a conversation stands at the open door.

        Returns:
            Whether one does; False when every conversation has ended.
        """
        clock = self._clock
        while True:
            if self._door_changed:
                if self._door.is_open():
                    return True
                if self._ended == len(self.conversations):
                    return False
                self._door_changed = False
            clock.step()

    def observe(self) -> Observation:
        """Return what a policy may see of the conversation at the open door, or of the end."""
        if self._ended == len(self.conversations):
            return self.observer.blank(self.now)
        observation = self._door.observe(self.now)
        if self._deployment.engine_exports:
            exports = tuple(engine.export() for engine in self.engines)
            observation = replace(observation, exports=exports)
        return observation

    def place(self, placement: Placement) -> None:
        """Let the conversation at the door in, or hold it.

        Raises:
            ValueError: The roles do not allow the placement, nobody may hold, or nothing is under
                way that could end the wait.
        """
        if placement == HOLD:
            if not self._deployment.may_hold or self.observer.is_idle:
                why = "nothing is under way" if self._deployment.may_hold else "may_hold is false"
                raise ValueError(f"cannot hold the conversation at the door: {why}")
            self._door_changed = False
            return
        prefill_at, decode_at, offload_above = placement
        if decode_at not in self.fleet.decoders:
            raise ValueError(f"{placement}: engine {decode_at} does not decode")
        if prefill_at != decode_at and prefill_at not in self.fleet.prefillers_for(decode_at):
            raise ValueError(f"{placement}: engine {prefill_at} does not prefill for others")
        head = self._door.admit(decode_at)
        self._placements[head.conversation] = placement
        self.ledger.append(
            Placed(self.now, head.conversation, head.turn, prefill_at, decode_at, offload_above)
        )
        self._dispatch(head.conversation, head.turn, placed=True)

    def meter(self) -> float:
        """Read the energy counters into the ledger and return their sum in joules."""
        joules = sum(sum(engine.energy_j().values()) for engine in self.engines)
        self.ledger.append(Metered(self.now, joules))
        return joules

    # --- the life of a conversation ---

    def _schedule_arrival(self) -> None:
        if self._arrived < len(self.conversations):
            delay = self.conversations[self._arrived].arrival_s - self.now
            self._clock.after(max(delay, 0.0), self._on_arrival)

    def _on_arrival(self, _: Call) -> None:
        conversation = self._arrived
        self._arrived += 1
        self._schedule_arrival()
        self._start_turn(conversation, 0)

    def _start_turn(self, conversation: int, turn: int) -> None:
        input_tokens, new_tokens, *_ = self.conversations[conversation].turns[turn]
        self.ledger.append(TurnArrived(self.now, conversation, turn, input_tokens, new_tokens))
        self._door_changed = True  # also by a pinned turn that holds less than the one before it
        if turn and not self._deployment.decides_every_turn:
            self._dispatch(conversation, turn, placed=False)
        else:
            self._door.enqueue(conversation, turn, input_tokens, self._peak_tokens[conversation])

    def _dispatch(self, conversation: int, turn: int, *, placed: bool) -> None:
        """Send a turn's prompt to the engine that computes it."""
        input_tokens, new_tokens, output_tokens, *_ = self.conversations[conversation].turns[turn]
        placement = self._placements[conversation]
        offloaded = placement.offloads(placed, new_tokens)
        at = placement.prefill_at if offloaded else placement.decode_at
        reusable_tokens = input_tokens - new_tokens if self._deployment.prefix_caching else 0
        been_at = self._been_at.setdefault(conversation, [])
        for engine in been_at:
            if engine != at:
                self.engines[engine].forget(conversation, reusable_tokens)
        home = been_at[-1] if been_at else at
        pulls = reusable_tokens > 0 and self._deployment.pulls_history
        for engine in (at, placement.decode_at):
            if engine in been_at:
                been_at.remove(engine)
            been_at.append(engine)
        self.engines[at].submit(
            Request(
                conversation,
                turn,
                input_tokens,
                reusable_tokens,
                0 if offloaded else output_tokens,
                home if pulls and home != at else -1,
            )
        )

    # --- what engines report ---

    def reserves(self, request: Request) -> bool:
        """Set memory aside where a prompt will be decoded, before it is computed elsewhere."""
        conversation = request.conversation
        placement = self._placements[conversation]
        cached = self.engines[placement.decode_at].reserve(
            conversation, request.input_tokens - 1, request.reusable_tokens
        )
        if cached is None:
            self._without_room.add(placement.prefill_at)
            return False
        self._at_decoder[conversation] = cached
        return True

    def pulls(self, request: Request) -> bool:
        """Copy what a prompt's engine lacks of the conversation's KV from where it was decoded."""
        conversation, source = request.conversation, request.history_at
        prefill_at, decode_at, _ = self._placements[conversation]
        target = decode_at if request.output_tokens else prefill_at
        kept_by_decoder = source == decode_at
        if kept_by_decoder:
            held = self._at_decoder[conversation]
        else:
            engine = self.engines[source]
            held = min(engine.idle_tokens(conversation), request.reusable_tokens)
            held -= held % engine.kv.block_tokens
        tokens = held - request.computed
        if tokens <= 0:
            return False
        lent = 0 if kept_by_decoder else self.engines[source].lend(conversation)
        self._send(_KvCopy(request, source, target, tokens, lent, True, self.now), 0)
        return True

    def on_prefilled(self, request: Request) -> None:
        """Send the KV of a prompt to the engine that decodes it."""
        source, target, _ = self._placements[request.conversation]
        self.ledger.append(
            Prefilled(
                self.now,
                request.conversation,
                request.turn,
                source,
                request.input_tokens,
                request.cached_tokens,
                request.started_s - request.submitted_s,
            )
        )
        tokens = request.input_tokens - self._at_decoder.pop(request.conversation)
        computed_tokens = min(tokens, request.input_tokens - request.cached_tokens)
        copy = _KvCopy(request, source, target, tokens, 0, False, self.now)
        self._send(copy, computed_tokens)

    def _send(self, copy: _KvCopy, computed_tokens: int) -> None:
        """Begin a copy, of which so many tokens have just been computed."""
        source, target, tokens = copy.source, copy.target, copy.tokens
        if self._link(copy).stops_engines:
            self.engines[source].copy(self._half_s(copy), copy)
        else:
            self._network.send(source, target, tokens, copy, computed_tokens=computed_tokens)

    def on_copied(self, copy: object) -> None:
        """Let the other engine read what one has written."""
        assert isinstance(copy, _KvCopy)
        if copy.written:
            self._on_kv_moved(copy, self.now - copy.began_s)
        else:
            self.engines[copy.target].copy(self._half_s(copy), copy._replace(written=True))

    def _half_s(self, copy: _KvCopy) -> float:
        return self._link(copy).exposed_s(copy.tokens * self.spec.kv_bytes_per_token) / 2

    def _link(self, copy: _KvCopy) -> LinkSpec:
        return self.spec.network.link(copy.source, copy.target, self._nodes)

    def _on_kv_moved(self, copy: _KvCopy, seconds: float) -> None:
        request, source, target, tokens, lent, is_history, *_ = copy
        conversation, turn = request.conversation, request.turn
        now = self.now
        self.ledger.append(KvMoved(now, conversation, turn, source, target, tokens, seconds))
        if self._timeline is not None:
            move = Move(conversation, turn, target, tokens, now - seconds, now)
            self._timeline.tracks[source].moves.append(move)
        if is_history:
            if lent:
                self.engines[source].take_back(conversation, lent)
            self.engines[target].pulled(request, request.computed + tokens)
        else:
            output_tokens = self.conversations[conversation].turns[turn].output_tokens
            self.engines[source].release(request)
            self.engines[target].deliver(
                Request(conversation, turn, request.input_tokens, 0, output_tokens)
            )

    def on_first_token(self, request: Request) -> None:
        """Write the first token of a turn down."""
        conversation = request.conversation
        decode_at = self._placements[conversation].decode_at
        self.ledger.append(FirstToken(self.now, conversation, request.turn, decode_at))
        if self._deployment.may_hold:
            self._door_changed = True  # a prompt less is waiting

    def on_turn_finished(self, request: Request) -> None:
        """Write a turn down; the next one follows after its gap."""
        conversation, turn = request.conversation, request.turn
        self.ledger.append(
            TurnFinished(
                self.now,
                conversation,
                turn,
                self._placements[conversation].decode_at,
                request.input_tokens,
                request.cached_tokens,
                request.output_tokens,
            )
        )
        self._door_changed = True
        turns = self.conversations[conversation].turns
        last = turn + 1 == len(turns)
        if last or self._deployment.decides_every_turn:
            self._door.leave(conversation)
        if last:
            self.ledger.append(ConversationEnded(self.now, conversation, len(turns)))
            self._ended += 1
            del self._been_at[conversation], self._placements[conversation]

    def on_room_freed(self) -> None:
        """Let prefill engines look again, once what is under way now has settled."""
        if self._without_room:
            self._clock.after(0.0, self._nudge)

    def after_turn(self, request: Request) -> None:
        """Let the conversation's next turn come after its gap."""
        conversation, turn = request.conversation, request.turn + 1
        if turn == len(self.conversations[conversation].turns):
            return
        gap_s = self._gap_s(conversation, turn)
        if gap_s == 0.0:
            self._start_turn(conversation, turn)
        else:
            self._clock.after(gap_s, self._on_gap_over, (conversation, turn))

    def _gap_s(self, conversation: int, turn: int) -> float:
        """Return the time from the end of the turn before, which is now, to this one's arrival."""
        arrival_s, turns = self.conversations[conversation]
        gap_s, not_before_s = turns[turn].gap_s, turns[turn].not_before_s
        return max(gap_s, arrival_s + not_before_s - self.now) if not_before_s else gap_s

    def _on_gap_over(self, call: Call) -> None:
        conversation, turn = cast(tuple[int, int], call.value)
        self._start_turn(conversation, turn)

    def _nudge(self, _: Call) -> None:
        engines, self._without_room = self._without_room, set()
        for engine in sorted(engines):
            self.engines[engine].nudge()

    def _checked_peaks(self) -> list[int]:
        """Return the peak KV of each conversation, once it is known to fit."""
        smallest = min(self.fleet.kv_capacity_tokens)
        peaks = []
        for i, conversation in enumerate(self.conversations):
            if not conversation.turns:
                raise ClusterError(f"conversation {i} has no turns")
            peak = conversation.peak_tokens
            if peak > smallest:
                raise ClusterError(
                    f"conversation {i} grows to {peak} tokens, more than the "
                    f"smallest KV pool of cluster {self.spec.name!r}, {smallest} tokens"
                )
            peaks.append(peak)
        return peaks
