"""A tier under a lower power cap than the one it was measured at.

A cap takes clocks away when work is dense, so it slows what computes and hardly what waits for
memory or for launches. With r = the tier's own cap over the lower one:

- attention of prompts, and of decodes that go through its kernels, takes r^0.95 times as long;
- reading the KV of decodes takes r^0.05 times as long;
- everything else takes as long as before, idle power stays, and no step uses more than the cap
  times its duration.

One pair was measured: an NVIDIA A40 with Qwen3-0.6B at 300 W and 200 W, r = 1.5. The coefficients
of 300 W with this rule predict the cold prefills at 200 W (128 to 65,536 tokens, medians of 5;
source in ``conf/hardware/a40_qwen3_0.6b_200w.yaml``) with a mean absolute error of 3.7 %, 9.0 % at
most, and of 3.8 % where the exponent is fitted without the length that is predicted; without the
rule it is 16.2 %. The matrix part is not slowed: prefills up to 2,048 tokens took no longer.
Decodes past the launch floor took about 2 % longer (figure of the artifact).

For other GPUs, models and ratios the rule is carried over and was not measured; results say so
(``ClusterSpec.caveats``).
"""

from __future__ import annotations

from dataclasses import replace

from conserve_gym.envs.serving.hardware import Hardware

# Least mean absolute error over the 19 prompt lengths; 0.95 to 0.96 with any one of them left out.
ATTENTION_EXPONENT = 0.95
# 1.02 from 300 W to 200 W.
KV_EXPONENT = 0.05
# Nothing is known of deeper cuts, and without a cost they would look like free energy.
LARGEST_RATIO = 1.5


def capped(hardware: Hardware, cap_w: float) -> Hardware:
    """Return the tier under a power cap.

    Args:
        hardware: Tier with the cap that it was measured at.
        cap_w: Watts that it may use at most; its own cap changes nothing.

    Raises:
        ValueError: The cap is above the tier's own, or so low that the rule was not measured.
    """
    power = hardware.power
    if cap_w > power.cap_w:
        raise ValueError(f"cap_w={cap_w:g} is above the tier's own {power.cap_w:g} W")
    lowest_w = lowest_cap_w(hardware)
    if cap_w < lowest_w:
        raise ValueError(
            f"cap_w={cap_w:g} is below {lowest_w:g} W, the lowest for which the rule was measured"
        )
    if cap_w == power.cap_w:
        return hardware
    ratio = power.cap_w / cap_w
    prefill, decode = hardware.prefill, hardware.decode
    return replace(
        hardware,
        prefill=replace(prefill, attention_ns=prefill.attention_ns * ratio**ATTENTION_EXPONENT),
        decode=replace(decode, kv_us=decode.kv_us * ratio**KV_EXPONENT),
        power=replace(power, cap_w=cap_w),
        provenance=replace(
            hardware.provenance,
            source=f"{hardware.provenance.source}; cap of {cap_w:g} W carried over from an A40",
            holdout_error_pct={},
        ),
    )


def lowest_cap_w(hardware: Hardware) -> float:
    """Return the lowest cap in watts for which the rule holds."""
    return max(hardware.power.cap_w / LARGEST_RATIO, hardware.power.base_w)
