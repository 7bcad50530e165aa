"""Recordings looked at, converted, and turned into figures that draw such conversations."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from conserve_gym.agents import workload_match
from conserve_gym.agents.workload_match import Load
from conserve_gym.envs.configuration import ConfigurationError, validated
from conserve_gym.envs.fields import STRICT, Positive
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.envs.workloads import fit, profile
from conserve_gym.envs.workloads.conversation import Recording
from conserve_gym.envs.workloads.convert import convert
from conserve_gym.envs.workloads.copula import CopulaWorkload
from conserve_gym.envs.workloads.limits import Limits
from conserve_gym.envs.workloads.match import differences
from conserve_gym.envs.workloads.profile import Profile
from conserve_gym.envs.workloads.readers.registry import open_recordings
from conserve_gym.envs.workloads.readers.source import OnError, Source
from conserve_gym.envs.workloads.samples import Samples
from conserve_gym.envs.workloads.transforms import applied, built
from conserve_gym.files import whole

_DRAWN_TURNS = 300_000
_SAYS = {
    "turns": "turns",
    "first_input": "first input",
    "later_new": "later new tokens",
    "output": "output",
    "gap_s": "gap, s",
    "peak_context": "peak context",
}


@dataclass(frozen=True, config=STRICT)
class WorkloadToolSpec:
    """What is done with which recordings.

    Attributes:
        do: Look at them, convert them, or fit figures to them.
        path: The file.
        output: Folder to write to; of a conversion the file.
        format: Name of the file's format, or ``auto``.
        reader_options: The format's own.
        on_error: Whether a bad row stops, or its conversation is left out.
        empty_output_tokens: What an output of 0 tokens counts as; None refuses it.
        conversations: How many to take; None takes all.
        max_turns: Longer conversations are cut; None cuts none.
        max_first_input_tokens: Conversations whose first prompt is longer are left out.
        max_context_tokens: Conversations are cut before a longer prompt with output.
        transforms: Changes to what was taken.
        name: Of the fitted workload.
        source: Where the recordings come from, for the head of the fitted file.
        episode: Conversations in an episode of the fitted workload.
        rates: Conversations a second at which recordings and draws are played; none plays none.
        seeds: Episodes of each.
        cluster: On which they are played, and whose lone engine says how long turns take.
    """

    do: Literal["profile", "convert", "fit"]
    path: Path
    output: Path
    format: str
    reader_options: dict[str, Any]
    on_error: OnError
    empty_output_tokens: PositiveInt | None
    conversations: PositiveInt | None
    max_turns: PositiveInt | None
    max_first_input_tokens: PositiveInt | None
    max_context_tokens: PositiveInt | None
    transforms: list[Any]
    name: str | None
    source: str | None
    episode: PositiveInt
    rates: list[Positive]
    seeds: Annotated[int, Field(ge=2)]
    cluster: ClusterSpec


class _Taken(NamedTuple):
    """What is taken of a file, as a stream, and how to say it."""

    source: Source
    recordings: Iterator[Recording]
    changes: list[str]


def run(config: DictConfig, console: Console) -> None:
    """Do what the configuration says.

    Raises:
        ConServeGymError: Something given is not right, or the file cannot be read.
    """
    spec = validated(WorkloadToolSpec, config)
    if spec.do == "convert":
        written = _convert(spec, console)
    else:
        try:
            spec.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"output={spec.output}: {error.strerror}") from None
        written = (_profile if spec.do == "profile" else _fit)(spec, console)
    for path in written:
        console.print(str(path), soft_wrap=True)


def _taken(spec: WorkloadToolSpec) -> _Taken:
    def most(limit: int | None) -> float:
        return math.inf if limit is None else limit

    limits = Limits(
        most(spec.conversations),
        most(spec.max_turns),
        most(spec.max_first_input_tokens),
        most(spec.max_context_tokens),
    )
    source, recordings = open_recordings(
        spec.path,
        spec.format,
        spec.on_error,
        empty_output_tokens=spec.empty_output_tokens,
        limits=limits,
        **spec.reader_options,
    )
    changes = built(spec.transforms, "transforms")
    if changes:
        recordings = iter(applied(changes, list(recordings), "transforms"))
    says = [change.name for change in changes]
    for key in ("conversations", "max_turns", "max_first_input_tokens", "max_context_tokens"):
        if (value := getattr(spec, key)) is not None:
            says.insert(0, f"{key}={value:,}")
    if spec.empty_output_tokens is not None:
        says.append(f"outputs of 0 tokens count as {spec.empty_output_tokens}")
    return _Taken(source, recordings, says)


def _counted(recordings: Iterable[Recording], console: Console) -> Iterator[Recording]:
    """Yield recordings, with how many there were so far on the screen."""
    with console.status("reading") as status:
        for count, recording in enumerate(recordings, start=1):
            if count % 500 == 0:
                status.update(f"reading: {count:,} conversations")
            yield recording


def _said(source: Source, console: Console) -> None:
    for note in source.notes:
        console.print(note, soft_wrap=True, markup=False)
    if source.skipped:
        console.print(f"left out because of bad rows: {source.skipped:,} conversations")
        for problem in source.problems:
            console.print(f"  {problem}", soft_wrap=True, markup=False)


def _convert(spec: WorkloadToolSpec, console: Console) -> list[Path]:
    taken = _taken(spec)
    spec.output.parent.mkdir(parents=True, exist_ok=True)
    count = convert(_counted(taken.recordings, console), spec.output)
    _said(taken.source, console)
    console.print(f"{count.conversations:,} conversations, {count.turns:,} turns")
    return [spec.output]


def _profile(spec: WorkloadToolSpec, console: Console) -> list[Path]:
    taken = _taken(spec)
    found = Profile.of(_counted(taken.recordings, console), StandaloneEngine.of(spec.cluster))
    _said(taken.source, console)
    tier = spec.cluster.hardware[spec.cluster.standalone]
    engine = f"a lone {tier.gpu} with {tier.model}"
    statistics = found.statistics()
    console.print(_profile_table(spec.path.name, statistics, engine, taken.changes))
    table, picture, settings = (
        spec.output / name for name in ("profile.csv", "profile.png", "profile.yaml")
    )
    _write_csv(table, ("statistic", "value"), statistics.items())
    title = "; ".join([spec.path.name, *taken.changes, f"idle on {engine}"])
    profile.draw(found, title, picture)
    says = {
        "path": str(spec.path),
        "changes": taken.changes,
        "service_time": engine,
        "skipped_conversations": taken.source.skipped,
        "notes": taken.source.notes,
        "statistics": {name: _or_none(value) for name, value in statistics.items()},
    }
    with whole(settings) as partial:
        partial.write_text(OmegaConf.to_yaml(OmegaConf.create(says)), encoding="utf-8")
    return [table, picture, settings]


def _profile_table(
    name: str, statistics: dict[str, float], engine: str, changes: Sequence[str]
) -> Table:
    table = Table(
        title=f"{name}: {statistics['conversations']:,.0f} conversations, "
        f"{statistics['turns_total']:,.0f} turns",
        caption="; ".join([*changes, f"idle share: of a life on {engine}"]),
    )
    table.add_column("")
    for head in ("p50", "p95", "p99"):
        table.add_column(head, justify="right")
    for quantity, says in _SAYS.items():
        values = [statistics[f"{quantity}_p{percent}"] for percent in profile.PERCENTILES]
        table.add_row(says, *map(_shown, values))
    table.add_section()
    quartiles = [statistics[f"idle_share_p{percent}"] for percent in profile.QUARTILES]
    table.add_row("idle share, p25 p50 p75", *(_percent(value) for value in quartiles))
    for key, says in (
        ("turn_1_share_of_new_input", "turn 1's share of new input"),
        ("rewritten_turns_share", "later turns that rewrite"),
        ("rewritten_turns_share_of_later_new", "their share of later new"),
    ):
        table.add_row(says, _percent(statistics[key]), "", "")
    table.add_row("unknown gaps", _shown(statistics["unknown_gaps"]), "", "")
    return table


def _fit(spec: WorkloadToolSpec, console: Console) -> list[Path]:
    name, source = _named(spec)
    taken = _taken(spec)
    conversations = [one.turns for one in _counted(taken.recordings, console)]
    _said(taken.source, console)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("fitting", total=None)

        def step(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        peaks = spec.max_context_tokens is not None
        figures = fit.fit(name, conversations, spec.episode, peaks, step)
    recorded = Samples.of(conversations)
    workload = CopulaWorkload(**figures)
    drawn = _drawn(workload, recorded, spec.episode)
    found = differences(recorded, drawn)
    loads = _play(spec, conversations, workload, console)
    folder = spec.output / "workload"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    fit.write(path, figures, _head(source, recorded, taken))
    console.print(workload_match.table(name, found, loads, spec.cluster.name))
    written = workload_match.write(spec.output, recorded, drawn, found, loads)
    console.print(
        f"play it: scripts/evaluate.py --config-dir {spec.output} workload={name}", soft_wrap=True
    )
    return [path, *written]


def _named(spec: WorkloadToolSpec) -> tuple[str, str]:
    if not spec.source:
        raise ConfigurationError("source is needed: source='where the recordings come from'")
    if not spec.name or Path(spec.name).name != spec.name:
        raise ConfigurationError(f"name={spec.name!r} is no name of a workload: name=...")
    if (resources.files("conserve_gym.conf") / "workload" / f"{spec.name}.yaml").is_file():
        raise ConfigurationError(
            f"name={spec.name!r} is a workload of this project, which Hydra would find first"
        )
    return spec.name, spec.source


def _drawn(workload: CopulaWorkload, recorded: Samples, episode: int) -> Samples:
    """Return draws of many episodes, from a seed that the fit has not seen."""
    rng = np.random.default_rng(2**32)
    episodes = math.ceil(_DRAWN_TURNS / (episode * recorded.turns.mean()))
    return Samples.of(
        (turns for _ in range(episodes) for turns in workload.draw(rng)), recorded.kinds
    )


def _play(
    spec: WorkloadToolSpec,
    conversations: Sequence[Any],
    workload: CopulaWorkload,
    console: Console,
) -> list[Load]:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("playing", total=2 * spec.seeds * len(spec.rates))
        step: Callable[[], None] = lambda: progress.advance(task)  # noqa: E731
        return [
            workload_match.play_both(
                spec.cluster, conversations, workload, spec.episode, rate, spec.seeds, step
            )
            for rate in spec.rates
        ]


def _head(source: str, recorded: Samples, taken: _Taken) -> list[str]:
    unknown = int(np.isnan(recorded.gap_s).sum())
    lines = [
        source,
        "",
        f"Figures of {recorded.turns.size:,} conversations and {recorded.output.size:,} turns.",
    ]
    lines += [f"Taken: {change}." for change in taken.changes]
    if unknown:
        lines.append(f"{unknown:,} gaps are unknown; a kind without a known one has gaps of 0 s.")
    return lines


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else json.loads(f"{value:.6g}")


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100.0 * value:.1f} %"
