"""What the paper shows.

Source: heights of the bars in ``perf_energy_bar_p95.pdf`` and, by eye, points of ``headline.pdf``
and ``wrong_pct_sweep.pdf`` of github.com/jerryding95/conserve at 2a8c3bc (Apache-2.0, 2026-06-10);
headlines from the abstract of arXiv 2606.01839 (2026-06). Latencies are multiples of the
conversation's standalone value.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A figure of the paper.

    Attributes:
        value: The figure.
        by_eye: Whether it was read off a picture, to about 5 %.
    """

    value: float
    by_eye: bool


PaperKey = tuple[str, str, float, str]
"""Arm, power caps of prefiller and decoders in watts, conversations a second, metric."""

_BARS = ("ttfet_p95", "tbt_p95", "e2e_p95", "tokens_per_joule")
_AT_SATURATION = {
    ("colocate_oracle", "300/300"): (5.56, 7.53, 5.56, 61.1),
    ("colocate_oracle", "300/200"): (6.18, 8.07, 6.24, 70.9),
    ("full_disagg", "300/300"): (104, 2.01, 65.1, 30.3),
    ("full_disagg", "300/200"): (85.5, 1.72, 59.3, 30.9),
    ("ampd", "300/300"): (8.30, 4.30, 6.76, 57.7),
    ("ampd", "300/200"): (8.19, 4.46, 6.54, 71.9),
    ("conserve_oracle", "300/300"): (4.06, 4.43, 4.23, 62.0),
    ("conserve_oracle", "300/200"): (4.13, 4.42, 4.22, 76.1),
}
_BY_EYE = {
    ("colocate_oracle", "300/300", 1.634, "ttfet_gmean"): 2.9,
    ("full_disagg", "300/300", 1.634, "ttfet_gmean"): 19.0,
    ("ampd", "300/300", 1.634, "ttfet_gmean"): 3.1,
    ("conserve_oracle", "300/300", 1.634, "ttfet_gmean"): 2.5,
    ("colocate_oracle", "300/300", 1.634, "ttfet_slo_violation_pct"): 17.0,
    ("colocate_oracle", "300/300", 1.634, "tbt_slo_violation_pct"): 26.0,
    ("colocate_oracle", "300/300", 1.634, "e2e_slo_violation_pct"): 19.0,
    ("ampd", "300/300", 1.634, "ttfet_slo_violation_pct"): 13.0,
    ("ampd", "300/300", 1.634, "e2e_slo_violation_pct"): 10.0,
    ("conserve_oracle", "300/300", 1.634, "ttfet_slo_violation_pct"): 0.0,
    ("conserve_oracle", "300/300", 1.634, "tbt_slo_violation_pct"): 0.0,
    ("conserve_oracle", "300/300", 1.634, "e2e_slo_violation_pct"): 0.0,
    ("colocate_oracle", "300/300", 1.0, "ttfet_p95"): 2.45,
    ("conserve_oracle", "300/300", 1.0, "ttfet_p95"): 2.65,
    ("colocate_oracle", "300/300", 1.0, "tbt_p95"): 2.4,
    ("conserve_oracle", "300/300", 1.0, "tbt_p95"): 2.9,
}

PAPER: dict[PaperKey, Published] = {
    **{
        (arm, caps, 1.634, metric): Published(float(value), by_eye=False)
        for (arm, caps), bars in _AT_SATURATION.items()
        for metric, value in zip(_BARS, bars, strict=True)
    },
    **{key: Published(value, by_eye=True) for key, value in _BY_EYE.items()},
}

SHARES: dict[tuple[float, str], Published] = {
    (0.0, "ttfet_p95"): Published(4.06, by_eye=True),
    (0.5, "ttfet_p95"): Published(13.7, by_eye=True),
    (0.5, "ttfet_slo_violation_pct"): Published(53.0, by_eye=True),
}
"""AMPD at saturation by share of misrouted turns. Its tokens a joule there, 64.7 and 57.9, leave
out what the prefill engine draws while it idles, and cannot be compared with those of the table."""

HEADLINES = {"ttfet": 51.08, "energy": 7.51, "caps": 22.75}
"""Percent by which ConServe lowers the p95 TTFET of AMPD and raises its tokens a joule, and by
which capped decoders raise ConServe's."""
