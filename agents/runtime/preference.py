"""How much a user prefers energy to latency."""

from __future__ import annotations

from conserve_gym.errors import ConServeGymError


class PreferenceError(ConServeGymError):
    """A preference that a policy cannot take; the message names it."""


def checked_preference(preference: object, policy: str, has_knob: bool) -> float:
    """Return a preference that a user wants of a policy.

    Raises:
        PreferenceError: It is no number from 0 to 1, or the policy has no knob for it.
    """
    if isinstance(preference, bool) or not isinstance(preference, int | float):
        raise PreferenceError(f"preference={preference!r} is no number")
    if not 0.0 <= preference <= 1.0:
        raise PreferenceError(f"preference={preference!r} is not from 0 to 1")
    if not has_knob:
        raise PreferenceError(
            f"preference={preference!r}: {policy!r} was trained for one weight of energy"
        )
    return float(preference)
