"""Decides again on a decision log, without engines: what was decided online must come out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from conserve_gym.agents.runtime import available
from conserve_gym.agents.runtime.log import LogError, placement_of, read, segments
from conserve_gym.agents.runtime.scheduler import Decision, Scheduler
from conserve_gym.deployment import Deployment
from conserve_gym.fleet import Fleet
from conserve_gym.ledger import Ledger, event_of
from conserve_gym.observer import Observer
from conserve_gym.placement import Placement


class Replayed(NamedTuple):
    """A decision of a log, and the one that is taken offline on the events before it."""

    conversation: int
    time: float
    online: Placement
    offline: Decision
    same: bool


def by_checksum(schedulers: Iterable[Scheduler]) -> dict[str, Scheduler]:
    """Return policies by what the log calls them; the rule alone is always among them."""
    rule = Scheduler(None, "no policy")
    return {rule.checksum: rule, **{one.checksum: one for one in schedulers}}


def fleet_of(path: Path) -> Fleet:
    """Return the engines that a log is about.

    Raises:
        LogError: The log is not ours.
    """
    head = next(read(_paths(path)[0]), None)
    if head is None:
        raise LogError(f"{path}: no decision log")
    return Fleet.from_json(**head["fleet"])


def replay(path: Path, policies: Mapping[str, Scheduler]) -> Iterator[Replayed]:
    """Decide again on a log.

    Args:
        path: Folder of a log, or one of its segments; each replays by itself.
        policies: By checksum.

    Raises:
        LogError: The log is not ours, or a policy that decided there is not given.
    """
    for segment in _paths(path):
        yield from _replay(segment, read(segment), policies)


def _paths(path: Path) -> list[Path]:
    paths = segments(path) if path.is_dir() else [path]
    if not paths:
        raise LogError(f"{path}: no decision log")
    return paths


def _replay(
    path: Path, records: Iterator[dict[str, Any]], policies: Mapping[str, Scheduler]
) -> Iterator[Replayed]:
    head = next(records, None)
    if head is None:
        return
    fleet = Fleet.from_json(**head["fleet"])
    observer = Observer(Ledger(), fleet, Deployment.from_json(head["deployment"]))
    observer.restore(head["state"])
    up = list(head["up"])
    for policy in policies.values():
        policy.reset(0)
    for record in records:
        if "event" in record:
            observer.read((event_of(record),))
        elif "up" in record:
            up[record["engine"]] = record["up"]
        elif "decision" in record:
            scheduler = policies.get(record["policy"])
            if scheduler is None:
                raise LogError(f"{path}: the policy with checksum {record['policy']} is needed")
            if record["preference"] is not None:
                scheduler.preference = record["preference"]
            conversation, time = record["conversation"], record["time"]
            observation = observer.observe(time, conversation, record["turn"])
            must_place = record["must_place"]
            offline = available.decision(scheduler, observation, up, must_place=must_place)
            online = placement_of(record["decision"])
            same = (online, record["action"]) == (offline.placement, offline.action)
            yield Replayed(conversation, time, online, offline, same)
