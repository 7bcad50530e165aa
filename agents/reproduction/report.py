"""The reproduction in words: what holds, what does not, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from conserve_gym.agents.reproduction.arms import ARMS, MISROUTED_SHARE
from conserve_gym.agents.reproduction.cells import UNCAPPED, Part, scaled_setting
from conserve_gym.agents.reproduction.checks import LATENCIES, Check, checks
from conserve_gym.agents.reproduction.explanations import explanation
from conserve_gym.agents.reproduction.published import PAPER
from conserve_gym.agents.reproduction.recording import PAPER_SEED, SATURATION
from conserve_gym.agents.reproduction.spec import ReproductionSpec
from conserve_gym.agents.reproduction.values import Values
from conserve_gym.agents.reproduction.winners import Winner, winner
from conserve_gym.agents.statistics import Estimate
from conserve_gym.files import whole
from conserve_gym.metrics import Clock

_PAIRS = {
    "peaks known beforehand †": ("colocate_oracle", "conserve_oracle"),
    "KV counted by turn": ("colocate", "conserve"),
}
"""Collocated and ConServe by what the door knows."""

_BEYOND = ("colocate", "conserve", "full_disagg", "ampd_played")


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
    """Return in a sentence or two whether the user's clock turns the winner round."""
    rate = max(spec.rates)
    sentences = []
    for says, pair in _PAIRS.items():
        told = []
        for clock in ("artifact", "user"):
            ahead = winner(values, pair, "ttfet_p95", rate, clock)
            both = [values.mean(arm, "ttfet_p95", rate, clock) for arm in pair]
            told.append((ahead, f"{both[0].mean:.2f} × and {both[1].mean:.2f} ×"))
        (artifact, on_artifact), (user, on_user) = told
        turned = {
            (False, False): "turns the winner round"
            if artifact.arm != user.arm
            else "does not turn the winner round",
        }.get((artifact.level, user.level), "leaves them level on one of the clocks")
        sentences.append(
            f"With {says}, the user's clock {turned} at {rate:g} conversations/s: p95 TTFET of "
            f"Collocated and ConServe is {on_artifact} on the artifact's clock and {on_user} on "
            "the user's."
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
        f"which {PAPER_SEED} gives the paper's own arrivals and order. Means over seeds ± half of "
        "the 95 % interval. × is over the conversation alone on one engine. † sees the future. "
        f"Caveats: {caveats or 'none'}."
    )
    yield ""
    yield f"    {' '.join(command)}"
    yield ""
    found = list(checks(spec, values))
    if found:
        yield from _checked(found, values)
    if SATURATION in spec.rates:
        yield from _beside_the_paper(spec, values)
    yield from _two_clocks(spec, values)
    if spec.misrouted_shares:
        yield from _shares(spec, values)
    if spec.orders:
        yield from _orders(values)
    if spec.sensitivity.constants and spec.sensitivity.factors:
        yield from _sensitivity(spec, values)
    if spec.scenarios:
        yield from _scenarios(spec, values)


def _turned(spec: ReproductionSpec, values: Values) -> Iterator[str]:
    """Who is ahead at saturation on the user's clock, by reservation, P:D ratio and KV budget."""
    yield from _head(
        "on the user's clock, at its highest rate",
        "conversations/s",
        "door",
        "p95 TTFET of Collocated, ×",
        "of ConServe, ×",
        "ahead",
        "SLO attainment of both, %",
    )
    settings: list[tuple[str, float, str, Part]] = [
        ("the paper's: 1:3, 308,448 tokens an engine", max(spec.rates), UNCAPPED, "paper")
    ]
    settings += [
        (scenario.says, max(scenario.rates), name, "scenarios")
        for name, scenario in spec.scenarios.items()
    ]
    for says, rate, variant, part in settings:
        for door, pair in _PAIRS.items():
            ahead = winner(values, pair, "ttfet_p95", rate, "user", variant, part)
            cells = [values.mean(arm, "ttfet_p95", rate, "user", variant, part) for arm in pair]
            attained = [
                values.mean(arm, "slo_attainment_pct", rate, "user", variant, part).mean
                for arm in pair
            ]
            yield _row(
                says,
                f"{rate:g}",
                door,
                *(_shown(cell) for cell in cells),
                _ahead(ahead),
                f"{attained[0]:.0f}, {attained[1]:.0f}",
            )


def _checked(found: list[Check], values: Values) -> Iterator[str]:
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
    missed = [check for check in found if not check.holds]
    if missed:
        yield "## What does not, and why"
        yield ""
        for check in missed:
            yield f"- *{check.says}*: {explanation(check, values)}"
        yield ""


def _beside_the_paper(spec: ReproductionSpec, values: Values) -> Iterator[str]:
    yield f"## Ours beside theirs, {SATURATION} conversations/s, the artifact's clock"
    yield ""
    metrics = {**LATENCIES, "tokens_per_joule": "tokens/J"}
    yield from _head("arm", "caps, W", *(f"{says}: ours / paper" for says in metrics.values()))
    for caps in spec.caps:
        for name, arm in ARMS.items():
            if not values.has(name, SATURATION, "artifact", caps):
                continue
            cells = []
            for metric in metrics:
                published = PAPER.get((name, caps, SATURATION, metric))
                theirs = f" / {published.value:g}" if published else ""
                cells.append(_shown(values.mean(name, metric, SATURATION, variant=caps)) + theirs)
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
                played = values.has(name, rate, clock, UNCAPPED)
                cells.append(_shown(values.mean(name, metric, rate, clock)) if played else "")
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
            _shown(values.mean("ampd", m, SATURATION, variant=f"{share:g}", part="shares"))
            for m in ("ttfet_p95", "ttfet_slo_violation_pct", "tokens_per_joule")
        ]
        yield _row(f"{100 * share:g}", *cells)
    yield ""


def _orders(values: Values) -> Iterator[str]:
    yield f"## Other orders of conversations, {SATURATION} conversations/s, the artifact's clock"
    yield ""
    metrics = {**LATENCIES, "tokens_per_joule": "tokens/J"}
    yield from _head("arm", *(f"{says}: lowest to highest" for says in metrics.values()))
    for name, arm in ARMS.items():
        if values.has(name, SATURATION, "artifact", UNCAPPED, "orders"):
            cells = []
            for metric in metrics:
                found = values.by_seed(name, metric, SATURATION, part="orders").values()
                cells.append(f"{min(found):.2f} to {max(found):.2f}")
            yield _row(arm.label + " †" * arm.sees_future, *cells)
    yield ""


def _sensitivity(spec: ReproductionSpec, values: Values) -> Iterator[str]:
    yield "## When a constant is wrong"
    yield ""
    yield (
        f"Who is ahead in p95 TTFET at {max(spec.rates):g} conversations/s, of Collocated, AMPD "
        "and ConServe, when one constant is scaled. `sensitivity.png` has every rate."
    )
    yield ""
    factors = sorted({*spec.sensitivity.factors, 1.0})
    arms = ("colocate_oracle", "ampd", "ampd_played", "conserve_oracle")
    yield from _head("constant", "clock", *(f"× {factor:g}" for factor in factors))
    for constant in spec.sensitivity.constants:
        clocks: tuple[Clock, ...] = ("artifact", "user")
        for clock in clocks:
            cells = []
            for factor in factors:
                variant, part = scaled_setting(constant, factor)
                ahead = winner(values, arms, "ttfet_p95", max(spec.rates), clock, variant, part)
                cells.append(_ahead(ahead))
            yield _row(constant, f"the {clock}'s", *cells)
    yield ""


def _scenarios(spec: ReproductionSpec, values: Values) -> Iterator[str]:
    yield "## Beyond the paper"
    yield ""
    yield (
        "SLO attainment in percent on the user's clock, nobody sees the future; by rate. "
        "`scenarios.csv` and `scenarios.png` have the others and all metrics."
    )
    yield ""
    yield from _head("setting", "arm", "rate: attainment")
    for name, scenario in spec.scenarios.items():
        for arm in _BEYOND:
            cells = [
                f"{rate:g}: "
                + _shown(
                    values.mean(arm, "slo_attainment_pct", rate, "user", name, "scenarios"), ".0f"
                )
                for rate in sorted(scenario.rates)
            ]
            yield _row(scenario.says, ARMS[arm].label, ", ".join(cells))
    yield ""


def _ahead(ahead: Winner) -> str:
    return "level" if ahead.level else ARMS[ahead.arm].label.split(",")[0]


def _shown(value: Estimate, form: str = ".2f") -> str:
    if value.low != value.low:
        return f"{value.mean:{form}}"
    return f"{value.mean:{form}} ± {(value.high - value.low) / 2:{form}}"


def _head(*headings: str) -> Iterator[str]:
    yield _row(*headings)
    yield _row(*("---" for _ in headings))


def _row(*cells: Iterable[str] | str) -> str:
    return f"| {' | '.join(map(str, cells))} |"
