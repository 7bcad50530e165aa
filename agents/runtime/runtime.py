"""A router's scheduler at work: it keeps the ledger, decides, and writes both down.

Any thread may call it. Nothing in ``decide`` or ``record`` waits for a disk or a network.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

from conserve_gym.agents.runtime import available
from conserve_gym.agents.runtime.artifact import ArtifactError
from conserve_gym.agents.runtime.log import Decided, DecisionLog, Head, Item, LogError
from conserve_gym.agents.runtime.scheduler import Decision, Scheduler
from conserve_gym.agents.runtime.shadow import Shadow
from conserve_gym.fleet import Fleet
from conserve_gym.ledger import ConversationEnded, Event, Ledger, Placed, TurnAborted, event_of
from conserve_gym.observer import Observer
from conserve_gym.placement import HOLD

_log = logging.getLogger(__name__)

E = TypeVar("E", bound=Event)


class UnfitPolicyError(ArtifactError):
    """A policy that is whole and cannot be used here; the message says why."""


class Runtime:
    """Decides for live conversations.

    Events are kept on disk alone: what decisions need of them is in the observer.

    Args:
        scheduler: What decides.
        fleet: The engines.
        log: Where events and decisions are written from the first ``begin_segment`` on; None writes
            them nowhere.
        clock: Seconds, never running back.

    Attributes:
        fleet: The engines.
        scheduler: What decides now.
        shadow: A candidate beside it; None without one.
        up: Whether each engine is up.
        events: Number of events so far.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        fleet: Fleet,
        *,
        log: DecisionLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start an empty ledger."""
        self.fleet = fleet
        self.scheduler = scheduler
        self.deployment = scheduler.deployment
        self.shadow: Shadow | None = None
        self.up = [True] * len(fleet.roles)
        self.events = 0
        self._observer = Observer(Ledger(), fleet, self.deployment)
        self._log = log
        self._begun = False
        self._clock = clock
        self._offset = -clock()
        self._unix_s = time.time()  # of the ledger's start
        self._last = 0.0
        self._lock = RLock()

    def now(self) -> float:
        """Return the seconds since the ledger's start."""
        with self._lock:
            self._last = max(self._last, self._clock() + self._offset)
            return self._last

    def record(self, event_type: Callable[..., E], *values: float) -> E:
        """Write down what happens now.

        Args:
            event_type: The event.
            values: Its fields after the time.

        Raises:
            LedgerError: It does not follow from the events before it.
        """
        with self._lock:
            event = event_type(self.now(), *values)
            self._read(event)
            return event

    def decide(self, conversation: int, turn: int = 0, *, wait: bool = False) -> Decision | None:
        """Place the conversation at the door, or hold it, and write that down.

        Args:
            conversation: Its ``TurnArrived`` is recorded.
            turn: Its turn at the door.
            wait: Place it only where there is room, and where the policy does not hold it.

        Returns:
            The decision; None where it shall wait.
        """
        with self._lock:
            now = self.now()
            observation = self._observer.observe(now, conversation, turn)
            if wait and not available.has_room(observation, self.up):
                return None
            must_place = not wait
            decision = available.decision(
                self.scheduler, observation, self.up, must_place=must_place
            )
            shadow = self.shadow
            instead = None
            if shadow:
                instead = shadow.compare(observation, decision, self.up, must_place=must_place)
            by = self.scheduler.checksum, self.scheduler.preference
            self._put(Decided(now, conversation, turn, *by, must_place, decision, instead))
            if decision.placement == HOLD:
                return None
            self._read(Placed(now, conversation, turn, *decision.placement))
            return decision

    def set_up(self, engine: int, up: bool) -> None:
        """Write down that an engine went down or came back."""
        with self._lock:
            if self.up[engine] != up:
                self.up[engine] = up
                self._put({"engine": engine, "up": up, "time": self.now()})

    def note(self, record: dict[str, Any]) -> None:
        """Write down something of the router's own, under the key ``router``."""
        with self._lock:
            self._put({"router": record})

    def load(self, path: Path) -> None:
        """Decide with another exported policy from now on; it is read in the caller's thread.

        Raises:
            ArtifactError: It cannot be used here; the acting one stays, and the log says why.
        """
        try:
            scheduler = self._checked(path)
        except ArtifactError as error:
            with self._lock:
                self._put({"refused": str(error), "time": self.now()})
            raise
        with self._lock:
            self.scheduler = scheduler
            self._put(
                {"policy": scheduler.checksum, "name": scheduler.name, "time": self.now()},
            )

    def load_shadow(self, path: Path | None) -> None:
        """Let a candidate decide beside the acting policy; None ends that.

        Raises:
            ArtifactError: It cannot be used here; nothing changes.
        """
        shadow = Shadow(self._checked(path)) if path is not None else None
        with self._lock:
            self.shadow = shadow
            candidate = shadow.scheduler.checksum if shadow else ""
            self._put({"candidate": candidate, "time": self.now()})

    def summary(self) -> dict[str, Any]:
        """Return what is known of cluster and engines now, by field, for people to look at."""
        with self._lock:
            blank = self._observer.blank(self.now())
        engines = {
            name: blank.engine_field(name).tolist()
            for name in (
                "pinned",
                "kv_known",
                "turns_in_flight",
                "decoding",
                "prompt_in_flight",
                "ttft_recent",
                "tbt_recent",
            )
        }
        cluster = {
            name: blank[name] for name in ("arrivals_recent", "live_conversations", "at_door")
        }
        return {"time": blank.time, "cluster": cluster, "engines": engines}

    def begin_segment(self, router: Sequence[dict[str, Any]] = ()) -> None:
        """Begin a segment of the log, which restores all that is known now.

        Args:
            router: What ``note`` would have to be told for the router's own state.
        """
        if self._log is None:
            return
        with self._lock:
            head = {
                "unix_s": self._unix_s,
                "time": self.now(),
                "events": self.events,
                "fleet": self.fleet.to_json(),
                "deployment": self.deployment.to_json(),
                "policy": self.scheduler.checksum,
                "name": self.scheduler.name,
                "up": list(self.up),
                "state": self._observer.state(),
                "router": list(router),
            }
            self._begun = True
            self.scheduler.reset(0)  # what a rule remembers is not in the log, and it replays alone
            self._put(Head(head))

    @property
    def wants_segment(self) -> bool:
        """Whether the log's segment is full."""
        return self._log is not None and self._log.full

    def restore(self, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Go on from a segment of the log; turns that were under way then are given up.

        A conversation that waited at the door is given up as a whole.

        Args:
            records: The segment, as ``log.latest`` reads it.

        Returns:
            What the router noted, in order.

        Raises:
            LogError: It is that of another fleet or another deployment.
        """
        notes: list[dict[str, Any]] = []
        with self._lock:
            placed: set[int] = set()
            for record in records:
                if "log" in record:
                    self._restore_head(record)
                    placed |= {
                        key for key, one in record["state"]["conversations"] if one["placement"]
                    }
                    notes += record["router"]
                elif "event" in record:
                    event = event_of(record)
                    self._observer.read((event,))
                    self.events += 1
                    self._last = max(self._last, event.time)
                    if isinstance(event, Placed):
                        placed.add(event.conversation)
                elif "router" in record:
                    notes.append(record["router"])
            # The time between is counted, so that what is recent then is not recent now.
            self._offset = max(time.time() - self._unix_s, self._last) - self._clock()
            for conversation, turn in self._observer.unfinished():
                self.record(TurnAborted, conversation, turn)
                if conversation not in placed:
                    self.record(ConversationEnded, conversation, 1)
        return notes

    def _restore_head(self, head: dict[str, Any]) -> None:
        # Costs may differ: nothing that is known follows from them.
        same_fleet = Fleet.from_json(**head["fleet"]) == self.fleet
        if not same_fleet or head["deployment"] != self.deployment.to_json():
            raise LogError("the log is that of another fleet or deployment")
        self._unix_s = head["unix_s"]
        self._last = head["time"]
        self.events = head["events"]
        self._observer.restore(head["state"])

    def _read(self, event: Event) -> None:
        self._observer.read((event,))
        self.events += 1
        self._put(event)

    def _put(self, item: Item) -> None:
        if self._log is not None and self._begun:
            self._log.put(item)

    def _checked(self, path: Path) -> Scheduler:
        scheduler = Scheduler.load(path)
        assert scheduler.artifact is not None
        if scheduler.deployment != self.deployment:
            raise UnfitPolicyError(
                f"{path}: it was trained for deployment={scheduler.deployment.to_json()}, and "
                f"{self.deployment.to_json()} is running: start the router again"
            )
        if not scheduler.artifact.serves(self.fleet):
            raise UnfitPolicyError(f"{path}: the policy does not serve these engines")
        if scheduler.preference is not None and self.scheduler.preference is not None:
            scheduler.preference = self.scheduler.preference
        return scheduler
