"""How conversations wait in the artifact: each tries at once, and then every 50 ms.

So room goes to whoever tries next, and not to whoever came first. A conversation whose turn has
ended tries before all that sleep, and mostly takes back the room that it has just left. Room is
counted by turns with their outputs, whose lengths the client prescribes: what a turn will hold is
taken when it begins. Source: ``KvTracker`` and its callers in ``conversation.py`` of the artifact
(see ``recording``). Which sleeper is the next to try is drawn here, and its sleep left out.
"""

from __future__ import annotations

import random

from conserve_gym.deployment import Reservation
from conserve_gym.envs.serving.door import Door, Waiting
from conserve_gym.fleet import Fleet
from conserve_gym.observer import Observer


class PollingDoor(Door):
    """A door without a line, which counts what it is told."""

    def __init__(self, fleet: Fleet, reservation: Reservation, observer: Observer) -> None:
        """Start with nobody waiting."""
        super().__init__(fleet, Reservation.ORACLE_PEAK, observer)  # by its own count
        self._knows_peak = reservation is Reservation.ORACLE_PEAK
        self._rng = random.Random(0)
        self._awake: list[Waiting] = []

    def enqueue(self, conversation: int, turn: int, known_tokens: int, peak_tokens: int) -> None:
        """Let a turn try."""
        footprint = peak_tokens if self._knows_peak else known_tokens
        super().enqueue(conversation, turn, known_tokens, footprint)
        self._awake.append(self._queue[-1])

    def grow(self, conversation: int, tokens: int) -> None:
        """Count what a conversation inside takes for a turn; nobody is asked whether it fits."""
        if not self._knows_peak:
            engine, held = self._peaks[conversation]
            self._peaks[conversation] = (engine, held + tokens)
            self._peak_tokens[engine] += tokens

    def is_open(self) -> bool:
        """Return whether somebody fits; who tries next becomes the head."""
        awake, self._awake = self._awake, []
        trying = [one for one in awake if self._fits(one)]
        if not trying:
            trying = [one for one in self._queue if self._fits(one)]
            if not trying:
                return False
            trying = [self._rng.choice(trying)]
        self._awake = trying[1:]
        self._queue.remove(trying[0])
        self._queue.appendleft(trying[0])
        return True


class ProxyDoor(PollingDoor):
    """Where every turn goes through the prefill engine, its prompt is also counted there.

    The artifact holds a prompt's tokens of the prefill engine's KV budget until the turn has been
    decoded (``run_conversation_kv_aware_all_disagg``).
    """

    def __init__(self, fleet: Fleet, reservation: Reservation, observer: Observer) -> None:
        """Start with nobody let in."""
        super().__init__(fleet, reservation, observer)
        self._budget_tokens = fleet.kv_capacity_tokens[0]
        self._prompts: dict[int, int] = {}

    def admit(self, decode_at: int) -> Waiting:
        """Let the head in."""
        head = super().admit(decode_at)
        self._prompts[head.conversation] = head.footprint_tokens
        self._budget_tokens -= head.footprint_tokens
        return head

    def leave(self, conversation: int) -> None:
        """Count a turn's KV as free again, at both engines."""
        super().leave(conversation)
        self._budget_tokens += self._prompts.pop(conversation)

    def _fits(self, waiting: Waiting) -> bool:
        return waiting.footprint_tokens <= self._budget_tokens and super()._fits(waiting)
