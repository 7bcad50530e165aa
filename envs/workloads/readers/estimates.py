"""What formats leave out, by stated rules."""

from __future__ import annotations

from conserve_gym.envs.workloads.conversation import Turn

SERVICE_S = 0.5
TOKEN_S = 0.03
"""Assumed pace of an unknown service: half a second, and 30 ms for every token of the output."""


def think_time_s(elapsed_s: float, output_tokens: int, service_s: float, token_s: float) -> float:
    """Return what is left between two arrivals after the first one's service, at least 0.

    Args:
        elapsed_s: Time between the arrivals.
        output_tokens: Output of the first.
        service_s: What its service takes without the output.
        token_s: What each token of the output adds.
    """
    return max(0.0, elapsed_s - service_s - token_s * output_tokens)


def appended_tokens(before: Turn | None, input_tokens: int) -> int:
    """Return how many tokens of a prompt are new, where only its full length is known.

    A prompt that can hold the one before it and its output appends to both. One that can hold only
    the prompt has dropped the output, or parts of it such as the reasoning: nothing after the
    earlier prompt is reused. One that is no longer than the earlier prompt was rewritten, and
    nothing is.

    Args:
        before: The turn before it; None for the first.
        input_tokens: Length of the prompt.
    """
    if before is None:
        return input_tokens
    for held in (before.input_tokens + before.output_tokens, before.input_tokens):
        if input_tokens > held:
            return input_tokens - held
    return input_tokens
