"""Text pictures of a cluster, from what a policy sees of it."""

from __future__ import annotations

from conserve_gym.observation import Observation

_BAR = 20


def heading(observation: Observation) -> str:
    """Return the time and who is at the door."""
    door = (
        f"conversation {observation.conversation} at the door"
        if observation.conversation >= 0
        else "nobody at the door"
    )
    return f"t = {observation.time:.3f} s, {door}"


def as_text(observation: Observation) -> str:
    """Return one line an engine: role, KV known to be held, turns and prompt tokens in flight."""
    lines = [heading(observation)]
    fields = zip(
        observation.fleet.roles,
        observation.engine_field("kv_known"),
        observation.engine_field("pinned"),
        observation.engine_field("decoding"),
        observation.engine_field("prompt_in_flight"),
        strict=True,
    )
    for index, (role, share, pinned, decoding, prompt) in enumerate(fields):
        bar = "#" * min(round(share * _BAR), _BAR)
        lines.append(
            f"{index:3d} {role:<7} KV [{bar:<{_BAR}}] {share:4.0%}  {pinned:3.0f} pinned  "
            f"{decoding:3.0f} decoding  {prompt:7.0f} prompt tokens waiting"
        )
    return "\n".join(lines)
