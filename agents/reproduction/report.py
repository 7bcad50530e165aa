"""The reproduction in words: what holds, what does not, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from conserve_gym.agents.reproduction.arms import ARMS, MISROUTED_SHARE
from conserve_gym.agents.reproduction.capacity import ATTAINMENT_PCT, capacity
from conserve_gym.agents.reproduction.cells import COMPARED, Part, scaled_setting
from conserve_gym.agents.reproduction.checks import LATENCIES, Check, checks
from conserve_gym.agents.reproduction.explanations import explanation
from conserve_gym.agents.reproduction.published import PAPER
from conserve_gym.agents.reproduction.recording import PAPER_SEED, SATURATION
from conserve_gym.agents.reproduction.spec import UNCAPPED, ReproductionSpec
from conserve_gym.agents.reproduction.values import Setting, Values
from conserve_gym.agents.reproduction.winners import winner
from conserve_gym.agents.statistics import Estimate, estimate
from conserve_gym.files import whole
from conserve_gym.metrics import Clock

_PAIRS = {
    "peaks known beforehand †": ("colocate_oracle", "conserve_oracle"),
    "KV counted by turn": ("colocate", "conserve"),
}
"""Collocated and ConServe by what the door knows."""

_CLOCKS: tuple[Clock, Clock] = ("artifact", "user")

_BEYOND = ("colocate", "conserve", "ampd_played", "full_disagg")

_PAPERS = "the paper's: 1:3, 308,448 tokens an engine"

_FAR_PCT = 12.0
"""A figure of the paper that is missed by more is explained."""


def write(
    spec: ReproductionSpec, values: Values, workload: str, command: Sequence[str], caveats: str
) -> Path:
    """Write ``report.md``; it appears whole or not at all."""
    path = spec.output / "report.md"
    with whole(path) as partial:
        lines = _lines(spec, values, workload, command, caveats)
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def verdict(spec: ReproductionSpec, values: Values) -> str:
    """Return whether the user's clock turns the winner at the highest rate round."""
    rate = max(spec.rates)
    sentences = []
    for door, pair in _PAIRS.items():
        artifact, user = (
            winner(values, pair, "ttfet_p95", Setting(rate, clock)) for clock in _CLOCKS
        )
        turns = "turns the winner round"
        if artifact.level or user.level:
            turns = "leaves the two level" if user.level else "parts the two"
        elif artifact.arm == user.arm:
            turns = "does not turn the winner round"
        told = []
        for setting, metric, form in (
            (Setting(rate, "artifact"), "ttfet_p95", "{:.2f} ×"),
            (Setting(rate, "user"), "ttfet_p95", "{:.2f} ×"),
            (Setting(rate, "user"), "slo_attainment_pct", "{:.0f} %"),
        ):
            both = [form.format(values.mean(arm, metric, setting).mean) for arm in pair]
            told.append(" and ".join(both))
        sentences.append(
            f"With {door}, the user's clock {turns}: at {rate:g} conversations/s p95 TTFET of "
            f"Collocated and ConServe is {told[0]} on the artifact's clock and {told[1]} on the "
            f"user's, where {told[2]} of their conversations meet the SLO."
        )
    return " ".join(sentences)


def _lines(
    spec: ReproductionSpec, values: Values, workload: str, command: Sequence[str], caveats: str
) -> Iterator[str]:
    yield "# The ConServe paper, reproduced"
    yield ""
    yield verdict(spec, values)
    yield ""
    yield from _turned(spec, values)
    yield ""
    yield "## What was played"
    yield ""
    source = (
        "a generator made from the paper's figures" if spec.workload.path is None else "a trace"
    )
    yield (
        f"{workload} ({source}); {len(spec.seeds)} seeds ({', '.join(map(str, spec.seeds))}), of "
        f"which {PAPER_SEED} gives the order of the paper's own runs and the others shuffle it, as "
        "the artifact's sweep does; "
        + (
            "they draw arrivals and misrouted turns too. "
            if spec.redraw
            else "arrivals and misrouted turns are the artifact's (its seed is fixed at 42). "
        )
        + "Means over seeds ± half of the 95 % interval. × is over the conversation alone on one "
        f"engine. † sees the future. Caveats: {caveats or 'none'}."
    )
    yield ""
    yield f"    {' '.join(command)}"
    yield ""
    found = list(checks(spec, values))
    yield from _checked(found)
    yield from _missed(found, values)
    if SATURATION in spec.rates:
        yield from _beside_the_paper(spec, values)
    yield from _two_clocks(spec, values)
    if spec.misrouted_shares:
        yield from _shares(spec, values)
    if spec.sensitivity.constants and spec.sensitivity.factors:
        yield from _sensitivity(spec, values)
    if spec.played_scenarios:
        yield from _scenarios(spec, values)


def _turned(spec: ReproductionSpec, values: Values) -> Iterator[str]:
    """Who is ahead at saturation on the user's clock, by reservation, P:D ratio and KV budget."""
    settings = {_PAPERS: Setting(max(spec.rates), "user")} | {
        scenario.says: Setting(max(scenario.rates), "user", name, "scenarios")
        for name, scenario in spec.played_scenarios.items()
    }
    yield "On the user's clock, each setting at its highest rate:"
    yield ""
    yield from _head(
        "setting",
        "conv./s",
        "door",
        "p95 TTFET, ×: Collocated",
        "ConServe",
        "ahead",
        "SLO attainment, %: Collocated",
        "ConServe",
        "ahead",
    )
    for says, setting in settings.items():
        for door, pair in _PAIRS.items():
            cells = []
            for metric, form in (("ttfet_p95", ".2f"), ("slo_attainment_pct", ".0f")):
                cells += [_shown(values.mean(arm, metric, setting), form) for arm in pair]
                ahead = winner(values, pair, metric, setting)
                cells.append("level" if ahead.level else ARMS[ahead.arm].label.split(",")[0])
            yield _row(says, f"{setting.rate:g}", door, *cells)


def _checked(found: list[Check]) -> Iterator[str]:
    holding = sum(check.holds for check in found)
    yield "## What reproduces"
    yield ""
    yield (
        f"{holding} of {len(found)} claims hold, on the artifact's clock, by the mean over seeds. "
        "No constant was fitted to any of them: the serving model's come from its calibration "
        "alone."
    )
    yield ""
    yield from _head("claim", "the paper", "ours", "on the paper's draw", "")
    for check in found:
        verdict = "holds" if check.holds else "**missed**"
        yield _row(check.says, check.target, check.ours, check.draw, verdict)
    yield ""


def _missed(found: list[Check], values: Values) -> Iterator[str]:
    """What does not reproduce: claims, and single figures of the paper."""
    yield "## What does not, and why"
    yield ""
    for check in found:
        if not check.holds:
            yield f"- {check.says}: {explanation(check.key, values)}"
    yield ""
    yield f"Figures of the paper that ours miss by more than {_FAR_PCT:g} % on its own draw:"
    yield ""
    yield from _head("arm", "caps, W", "conv./s", "metric", "the paper", "ours", "cause")
    for (arm, caps, rate, metric), published in PAPER.items():
        setting = Setting(rate, variant=caps)
        if not values.has(arm, setting):
            continue
        by_seed = values.by_seed(arm, metric, setting)
        mean = estimate(list(by_seed.values()))
        ours = by_seed.get(PAPER_SEED, mean.mean)
        if abs(ours - published.value) > _FAR_PCT / 100.0 * published.value:
            theirs = f"{'about ' if published.by_eye else ''}{published.value:g}"
            shown = f"{ours:.3g} (mean {_shown(mean)})"
            cause = explanation(f"{metric} {arm}", values)
            yield _row(ARMS[arm].label, caps, f"{rate:g}", metric, theirs, shown, cause)
    yield ""


def _beside_the_paper(spec: ReproductionSpec, values: Values) -> Iterator[str]:
    yield f"## Ours beside theirs, {SATURATION} conversations/s, the artifact's clock"
    yield ""
    metrics = {**LATENCIES, "tokens_per_joule": "tokens/J"}
    yield from _head("arm", "caps, W", *(f"{says}: ours / paper" for says in metrics.values()))
    for caps in spec.caps:
        for name, arm in ARMS.items():
            if not values.has(name, Setting(SATURATION, variant=caps)):
                continue
            cells = []
            for metric in metrics:
                published = PAPER.get((name, caps, SATURATION, metric))
                theirs = f" / {published.value:g}" if published else ""
                cells.append(
                    _shown(values.mean(name, metric, Setting(SATURATION, variant=caps))) + theirs
                )
            yield _row(arm.label + " †" * arm.sees_future, caps, *cells)
    yield ""
    yield (
        "TBT is over single tokens of last turns, as in the paper's figures; `table.csv` has it "
        "over conversations' means too (`tbt_mean`), and every rate. Prefill of the arm whose "
        "prefiller decodes too is free here, as in the artifact: a bound, not a system."
    )
    yield ""


def _two_clocks(spec: ReproductionSpec, values: Values) -> Iterator[str]:
    rate = max(spec.rates)
    yield f"## Two clocks, arm by arm, {rate:g} conversations/s, 300/300 W"
    yield ""
    yield (
        "The artifact's clock starts when a conversation has room, leaves the prefill engine's "
        "queue out and stitches runs together; the user's starts at its arrival in one run that "
        "counts all queues. A user's turn also finds its predecessor's output in the cache, and "
        "waits in line."
    )
    yield ""
    columns = [
        f"{says}: {clock}'s" for says in ("p95 TTFET", "p95 E2E") for clock in ("artifact", "user")
    ]
    yield from _head("arm", *columns, "tokens/J: artifact's", "user's")
    for name, arm in ARMS.items():
        cells = []
        for metric in ("ttfet_p95", "e2e_p95", "tokens_per_joule"):
            for clock in ("artifact", "user"):
                setting = Setting(rate, clock)
                played = values.has(name, setting)
                cells.append(_shown(values.mean(name, metric, setting)) if played else "")
        yield _row(arm.label + " †" * arm.sees_future, *cells)
    yield ""
    yield (
        "AMPD as the paper emulates it exists on the artifact's clock alone; on the user's, "
        "misrouted turns really go to the prefill engine, queue there, and move history and new "
        "KV."
    )
    yield ""


def _shares(spec: ReproductionSpec, values: Values) -> Iterator[str]:
    yield f"## AMPD by its share of misrouted turns, {SATURATION} conversations/s"
    yield ""
    yield (
        f"The paper's headline is against {MISROUTED_SHARE:.0%}, a parameter of its experiment. "
        "The artifact's clock, 300/300 W."
    )
    yield ""
    yield from _head("misrouted, %", "p95 TTFET, ×", "TTFET over SLO, %", "tokens/J")
    for share in sorted(spec.misrouted_shares):
        cells = [
            _shown(values.mean("ampd", m, Setting(SATURATION, variant=f"{share:g}", part="shares")))
            for m in ("ttfet_p95", "ttfet_slo_violation_pct", "tokens_per_joule")
        ]
        yield _row(f"{100 * share:g}", *cells)
    yield ""


def _sensitivity(spec: ReproductionSpec, values: Values) -> Iterator[str]:
    rate = max(spec.rates)
    yield "## When a constant is wrong"
    yield ""
    yield (
        f"Who is ahead in p95 TTFET at {rate:g} conversations/s when one constant is scaled: on "
        "the artifact's clock of the paper's arms, on the user's of those that do not see the "
        "future. `sensitivity.png` has every rate, SLO attainment and energy."
    )
    yield ""
    factors = sorted({*spec.sensitivity.factors, 1.0})
    yield from _head("constant", "clock", *(f"× {factor:g}" for factor in factors))
    for constant in spec.sensitivity.constants:
        for clock in _CLOCKS:
            cells = []
            for factor in factors:
                variant, part = scaled_setting(constant, factor)
                setting = Setting(rate, clock, variant, part)
                ahead = winner(values, COMPARED[clock], "ttfet_p95", setting)
                label = ARMS[ahead.arm].label.split(",")[0]
                cells.append(f"{label}, level" if ahead.level else label)
            yield _row(constant, f"the {clock}'s", *cells)
    yield ""


def _scenarios(spec: ReproductionSpec, values: Values) -> Iterator[str]:
    yield "## Beyond the paper"
    yield ""
    yield (
        f"Capacity on the user's clock: conversations/s at which mean SLO attainment falls below "
        f"{ATTAINMENT_PCT:g} %, linear between the rates played. No arm here sees the future. "
        "`scenarios.csv` and `scenarios.png` have the others and all metrics."
    )
    yield ""
    yield from _head("setting", "rates played", *(ARMS[arm].label for arm in _BEYOND))
    yield _row(
        _PAPERS,
        _span(spec.rates),
        *(_capacity(values, arm, spec.rates, UNCAPPED, "paper") for arm in _BEYOND),
    )
    for name, scenario in spec.played_scenarios.items():
        cells = [_capacity(values, arm, scenario.rates, name, "scenarios") for arm in _BEYOND]
        yield _row(scenario.says, _span(scenario.rates), *cells)
    yield ""


def _span(rates: Sequence[float]) -> str:
    return f"{min(rates):g} to {max(rates):g}"


def _capacity(values: Values, arm: str, rates: Sequence[float], variant: str, part: Part) -> str:
    carried = capacity(values, arm, rates, variant, part)
    if carried == 0.0:
        return f"below {min(rates):g}"
    return f"above {max(rates):g}" if carried == float("inf") else f"{carried:.2f}"


def _shown(value: Estimate, form: str = ".2f") -> str:
    if value.low != value.low:
        return f"{value.mean:{form}}"
    return f"{value.mean:{form}} ± {(value.high - value.low) / 2:{form}}"


def _head(*headings: str) -> Iterator[str]:
    yield _row(*headings)
    yield _row(*("---" for _ in headings))


def _row(*cells: Iterable[str] | str) -> str:
    return f"| {' | '.join(map(str, cells))} |"
