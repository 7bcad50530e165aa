"""What a reproduction has to show on the artifact's clock, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from conserve_gym.agents.reproduction.arms import ARMS
from conserve_gym.agents.reproduction.published import HEADLINES, PAPER
from conserve_gym.agents.reproduction.recording import PAPER_SEED, SATURATION
from conserve_gym.agents.reproduction.spec import UNCAPPED, ReproductionSpec
from conserve_gym.agents.reproduction.values import Setting, Values
from conserve_gym.agents.statistics import Estimate, estimate

LATENCIES = {"ttfet_p95": "p95 TTFET", "tbt_p95": "p95 last-turn TBT", "e2e_p95": "p95 E2E"}
CAPPED = "300/200"
_SATURATED = Setting(SATURATION)
_WITHIN_PCT = {"latency": 12.0, UNCAPPED: 6.0, CAPPED: 10.0}
_REACH = {"ttfet": (41.0, 61.0), "energy": (5.0, 10.0), "caps": (18.0, 28.0)}
_HEADLINES = {
    "ttfet": "p95 TTFET of ConServe below AMPD's, %",
    "energy": "tokens/J of ConServe above AMPD's, %",
    "caps": "tokens/J of ConServe with capped decoders above those without, %",
}


class Check(NamedTuple):
    """A claim of the paper.

    Attributes:
        key: What it is about, for whoever explains a miss.
        says: The same in words.
        target: What is asked.
        ours: What came out, with its 95 % interval.
        draw: The same with the paper's own arrivals and order.
        holds: Whether the mean is as asked.
    """

    key: str
    says: str
    target: str
    ours: str
    draw: str
    holds: bool


def checks(spec: ReproductionSpec, values: Values) -> Iterator[Check]:
    """Yield the checks that what was played allows."""
    if SATURATION in spec.rates:
        yield from _orders(values)
        yield from _latencies(values)
        yield from _energies(spec, values)
        yield from _headlines(spec, values)
    yield from _crossover(spec, values)


def _orders(values: Values) -> Iterator[Check]:
    arms = [name for name, arm in ARMS.items() if arm.in_paper]
    for metric, says in LATENCIES.items():
        published = {arm: PAPER[arm, UNCAPPED, SATURATION, metric].value for arm in arms}
        expected = sorted(arms, key=published.__getitem__)
        means = {arm: values.mean(arm, metric, _SATURATED).mean for arm in arms}
        ours = sorted(arms, key=means.__getitem__)
        drawn = {arm: _on_draw(values.by_seed(arm, metric, _SATURATED)) for arm in arms}
        own = sorted(arms, key=drawn.__getitem__)
        yield Check(
            "order",
            f"order of the arms in {says}",
            _names(expected),
            _names(ours),
            _names(own),
            ours == expected,
        )


def _latencies(values: Values) -> Iterator[Check]:
    for arm in ("colocate_oracle", "ampd", "conserve_oracle"):
        for metric, says in LATENCIES.items():
            yield _near(values, arm, metric, says, UNCAPPED, _WITHIN_PCT["latency"])


def _energies(spec: ReproductionSpec, values: Values) -> Iterator[Check]:
    for caps in (UNCAPPED, CAPPED):
        if caps in spec.caps:
            for name, arm in ARMS.items():
                if arm.in_paper:
                    within = _WITHIN_PCT[caps]
                    yield _near(values, name, "tokens_per_joule", "tokens/J", caps, within)


def _near(values: Values, arm: str, metric: str, says: str, caps: str, within_pct: float) -> Check:
    published = PAPER[arm, caps, SATURATION, metric].value
    by_seed = values.by_seed(arm, metric, Setting(SATURATION, variant=caps))
    ours = estimate(list(by_seed.values()))
    off = 100.0 * (ours.mean / published - 1.0)
    return Check(
        f"{metric} {arm}",
        f"{says} of {ARMS[arm].label}, {caps} W",
        f"{published:g} ± {within_pct:g} %",
        f"{_interval(ours)} ({off:+.1f} %)",
        _number(_on_draw(by_seed)),
        abs(off) <= within_pct,
    )


def _headlines(spec: ReproductionSpec, values: Values) -> Iterator[Check]:
    def by_seed(arm: str, metric: str, caps: str = UNCAPPED) -> dict[int, float]:
        return values.by_seed(arm, metric, Setting(SATURATION, variant=caps))

    ttfet, ampd_ttfet = by_seed("conserve_oracle", "ttfet_p95"), by_seed("ampd", "ttfet_p95")
    energy = by_seed("conserve_oracle", "tokens_per_joule")
    ampd_energy = by_seed("ampd", "tokens_per_joule")
    found = {
        "ttfet": {seed: 100.0 * (1.0 - ttfet[seed] / ampd_ttfet[seed]) for seed in ttfet},
        "energy": {seed: 100.0 * (energy[seed] / ampd_energy[seed] - 1.0) for seed in energy},
    }
    if CAPPED in spec.caps:
        capped = by_seed("conserve_oracle", "tokens_per_joule", CAPPED)
        found["caps"] = {seed: 100.0 * (capped[seed] / energy[seed] - 1.0) for seed in energy}
    for key, gains in found.items():
        low, high = _REACH[key]
        ours = estimate(list(gains.values()))
        yield Check(
            f"headline {key}",
            _HEADLINES[key],
            f"{HEADLINES[key]:g}, reach {low:g} to {high:g}",
            _interval(ours),
            _number(_on_draw(gains)),
            low <= ours.mean <= high,
        )


def _crossover(spec: ReproductionSpec, values: Values) -> Iterator[Check]:
    """Where ConServe's p95 TTFET falls below Collocated's, between two rates, linearly."""
    rates = sorted(spec.rates)
    gaps = {
        rate: values.difference(
            ("conserve_oracle", "colocate_oracle"), "ttfet_p95", Setting(rate)
        ).mean
        for rate in rates
    }
    on_draw = {
        rate: _on_draw(values.by_seed("conserve_oracle", "ttfet_p95", Setting(rate)))
        - _on_draw(values.by_seed("colocate_oracle", "ttfet_p95", Setting(rate)))
        for rate in rates
    }
    low, high = 1.25, 1.5
    found, own = _crossing(gaps), _crossing(on_draw)
    yield Check(
        "crossover",
        "conversations/s from which ConServe's p95 TTFET is below Collocated's",
        f"{low:g} to {high:g}",
        _number(found),
        _number(own),
        low <= found <= high,
    )


def _crossing(gaps: dict[float, float]) -> float:
    crossing = float("nan")
    for before, after in pairwise(gaps):
        if gaps[before] >= 0.0 > gaps[after]:
            share = gaps[before] / (gaps[before] - gaps[after])
            crossing = before + share * (after - before)
    return crossing


def _on_draw(by_seed: dict[int, float]) -> float:
    return by_seed.get(PAPER_SEED, float("nan"))


def _names(arms: list[str]) -> str:
    return " < ".join(ARMS[arm].label for arm in arms)


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3g}"


def _interval(value: Estimate) -> str:
    if value.low != value.low:
        return f"{value.mean:.3g}"
    return f"{value.mean:.3g} ± {(value.high - value.low) / 2:.2g}"
