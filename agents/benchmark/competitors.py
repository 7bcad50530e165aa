"""Who plays: names, what they look at, and where they can play."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from conserve_gym.agents.benchmark.cells import LOOK_AHEAD, bound_of, key_of
from conserve_gym.agents.benchmark.spec import Asked
from conserve_gym.agents.policies import OtherFleetError, resolve, split_name
from conserve_gym.agents.submissions import names_a_class, source
from conserve_gym.agents.trained import path_of
from conserve_gym.baselines.registry import BASELINES
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.policy import Policy, Reads, reads

HINDSIGHT = "best_in_hindsight"
"""What the rows of the best honest policy of each episode are called."""

MARKS = {Reads.FUTURE: " †", Reads.EXPORTS: " ‡"}
"""Behind the names of policies that look at more than what a router has seen."""


@dataclass
class Competitor:
    """One who plays.

    Attributes:
        key: What the user wrote, as one text.
        asked: The same as it was written.
        name: In tables and pictures.
        reads: The most that it looks at.
        version: What its files hold, as a digest; empty for a rule of the registry.
        left_out: Why it does not play, by cluster.
    """

    key: str
    asked: Asked
    name: str
    reads: Reads
    version: str
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def sees_future(self) -> bool:
        """Whether it uses what no scheduler can know."""
        return self.reads is Reads.FUTURE

    @property
    def is_bound(self) -> bool:
        """Whether it is no policy, but what the future would be worth."""
        return split_name(self.asked)[0] == LOOK_AHEAD

    @property
    def label(self) -> str:
        """Its name, marked by what it looks at."""
        return self.name + MARKS.get(self.reads, "")


def competitors(asked: Sequence[Asked], clusters: dict[str, ClusterSpec]) -> list[Competitor]:
    """Return everybody who is asked for, with where each cannot play.

    Raises:
        ConfigurationError: A policy does not exist or is none, or a cluster has nobody to rank.
    """
    found = [_competitor(one, clusters) for one in asked]
    names = [one.name for one in found]
    for one, name in zip(found, names, strict=True):
        if names.count(name) > 1 or name == HINDSIGHT:
            one.name = one.key
    check_somebody_plays(found, clusters)
    return found


def check_somebody_plays(found: Iterable[Competitor], clusters: Iterable[str]) -> None:
    """Check that every cluster has a policy that can be ranked.

    Raises:
        ConfigurationError: One has none; the message says why.
    """
    honest = [one for one in found if not one.sees_future]
    for cluster in clusters:
        reasons = [one.left_out.get(cluster) for one in honest]
        if all(reasons):
            raise ConfigurationError(
                f"clusters={cluster}: nobody can be ranked: "
                + (reasons[0] or "" if reasons else "all policies see the future")
            )


def _competitor(asked: Asked, clusters: dict[str, ClusterSpec]) -> Competitor:
    name, parameters = split_name(asked)
    if name == LOOK_AHEAD:
        base, actions = bound_of(parameters)
        based = _competitor(base, clusters)
        tried = "" if actions == "conversation" else f", {actions}"
        called = f"{name}({based.name}{tried})"
        return Competitor(key_of(asked), asked, called, Reads.FUTURE, based.version, based.left_out)
    made: list[Policy] = []
    errors: dict[str, ConfigurationError] = {}
    for cluster, spec in clusters.items():
        try:
            made.append(resolve(asked, spec))
        except ConfigurationError as error:
            errors[cluster] = error
    for reason in errors.values():
        if not made and not isinstance(reason, OtherFleetError):
            raise reason
    left_out = {cluster: str(reason) for cluster, reason in errors.items()}
    one = Competitor(key_of(asked), asked, name, Reads.BOOKKEEPING, version_of(asked), left_out)
    if made:
        one.name = made[0].name
        most = max((reads(policy.deployment) for policy in made), key=list(Reads).index)
        one.reads = BASELINES[name].reads if name in BASELINES else most
    return one


def version_of(asked: Asked) -> str:
    """Return the digest of a policy's files; empty for a rule of the registry.

    Of a class it is that of its own file: what this imports is not looked at.
    """
    if not isinstance(asked, str):
        base = asked.get(LOOK_AHEAD, {}).get("base")
        return "" if base is None else version_of(base)
    if asked in BASELINES:
        return ""
    path = source(asked) if names_a_class(asked) else path_of(asked)
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.relative_to(path).as_posix().encode() + b"\n" + file.read_bytes())
    return whole.hexdigest()[:16]
