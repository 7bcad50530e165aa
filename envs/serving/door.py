"""The door: conversations wait here, in line, until an engine has room for them."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from conserve_gym.deployment import Reservation
from conserve_gym.fleet import Fleet
from conserve_gym.observation import Observation
from conserve_gym.observer import Observer


class Waiting(NamedTuple):
    """A turn at the door.

    Attributes:
        conversation: Identifier.
        turn: Index of the turn.
        footprint_tokens: KV that it asks for.
    """

    conversation: int
    turn: int
    footprint_tokens: int


class Door:
    """Counts KV as a router does, and opens for the first conversation that fits somewhere.

    With ``Reservation.PER_TURN`` it counts what the ledger says that conversations hold. With
    ``Reservation.ORACLE_PEAK`` it counts what they will hold at their end.

    Args:
        fleet: Roles and capacities of the engines.
        reservation: How KV is counted.
        observer: Reader of the ledger.
    """

    def __init__(self, fleet: Fleet, reservation: Reservation, observer: Observer) -> None:
        """Start with nobody waiting."""
        self._fleet = fleet
        self._reservation = reservation
        self._observer = observer
        self._queue: deque[Waiting] = deque()
        self._peaks: dict[int, tuple[int, int]] = {}  # conversation: engine, tokens
        self._peak_tokens = [0] * len(fleet.roles)

    @property
    def head(self) -> Waiting:
        """The turn that is first in line."""
        return self._queue[0]

    def enqueue(self, conversation: int, turn: int, known_tokens: int, peak_tokens: int) -> None:
        """Let a turn wait; which of the two counts is its footprint depends on the reservation."""
        footprint = known_tokens
        if self._reservation is Reservation.NONE:
            footprint = 0
        elif self._reservation is Reservation.ORACLE_PEAK:
            footprint = peak_tokens
        self._queue.append(Waiting(conversation, turn, footprint))

    def is_open(self) -> bool:
        """Return whether the head of the line fits on some engine that decodes."""
        return bool(self._queue) and self._fits(self._queue[0])

    def _fits(self, waiting: Waiting) -> bool:
        footprint = waiting.footprint_tokens
        if not footprint:
            return True
        if self._reservation is Reservation.ORACLE_PEAK:
            taken = self._peak_tokens
        else:
            self._observer.update()
            taken = self._observer.kv_known_tokens
        capacity = self._fleet.kv_capacity_tokens
        return any(capacity[engine] - taken[engine] >= footprint for engine in self._fleet.decoders)

    def observe(self, now: float) -> Observation:
        """Return what a policy may see with the head of the line at the door."""
        head = self._queue[0]
        oracle = self._reservation is Reservation.ORACLE_PEAK
        return self._observer.observe(
            now,
            head.conversation,
            head.turn,
            taken_kv_tokens=self._peak_tokens if oracle else None,
            footprint_tokens=head.footprint_tokens if oracle else None,
        )

    def admit(self, decode_at: int) -> Waiting:
        """Let the head of the line in, pinned to an engine."""
        head = self._queue.popleft()
        if self._reservation is Reservation.ORACLE_PEAK:
            self._peaks[head.conversation] = (decode_at, head.footprint_tokens)
            self._peak_tokens[decode_at] += head.footprint_tokens
        return head

    def leave(self, conversation: int) -> None:
        """Count a conversation's KV as free again."""
        if conversation in self._peaks:
            engine, tokens = self._peaks.pop(conversation)
            self._peak_tokens[engine] -= tokens


class HoldingDoor(Door):
    """A door at which the policy may hold whom it is asked about: the newest is first in line.

    What has waited long is likely to be too late already, whoever is let in next; adaptive LIFO is
    what front ends under overload do (Maurer, Fail at Scale, ACM Queue 13, 2015). Later turns of
    conversations inside come before those that have not begun.
    """

    def enqueue(self, conversation: int, turn: int, known_tokens: int, peak_tokens: int) -> None:
        """Let a turn wait, before the conversations that were there."""
        super().enqueue(conversation, turn, known_tokens, peak_tokens)
        waiting = self._queue.pop()
        self._queue.insert(sum(other.turn > 0 for other in self._queue), waiting)
