"""The commands. Configuration is Hydra's; see ``--help`` of each."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, track

from conserve_gym.agents import multirun
from conserve_gym.errors import ConServeGymError
from conserve_gym.policy import Policy

CONFIG = {"config_path": "pkg://conserve_gym.conf", "version_base": "1.3"}

_SWEEP_KEYS = ("sweep", "~sweep", "+sweep", "trials=", "repeats=", "validation_", "output=")

P = ParamSpec("P")
R = TypeVar("R")


def _command(run: Callable[P, R]) -> Callable[P, R | None]:
    """Turn errors that a user can mend into one line and exit code 2."""

    @functools.wraps(run)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R | None:
        if multirun.is_job():
            multirun.begin(cast(DictConfig, args[0]))
        try:
            return run(*args, **kwargs)
        except KeyboardInterrupt:
            print("stopped; what has a folder goes on when it is started again", file=sys.stderr)
            sys.exit(130)
        except MissingMandatoryValue as error:
            says = f"{error.full_key} is needed: {error.full_key}=..."
        except (ConServeGymError, OmegaConfBaseException, OSError) as error:
            says = " ".join(str(error).split())
        print(f"error: {says}", file=sys.stderr)
        if not multirun.is_job():
            sys.exit(2)
        multirun.tell({"error": says})  # the other jobs go on
        return None

    return wrapped


@hydra.main(config_name="train", **CONFIG)
@_command
def train(config: DictConfig) -> None:
    """Train a policy into the folder ``run``."""
    from conserve_gym.agents.run_folder import MODEL
    from conserve_gym.agents.training import train as run
    from conserve_gym.agents.validation import EPISODES, attained_pct

    if multirun.is_job():
        config.progress_bar = False  # there may be several at a time
    folder = run(config)
    Console().print(f"trained: {folder / MODEL}", soft_wrap=True)
    if multirun.is_job():
        heading = f"SLO attainment, %, of {EPISODES} validation episodes"
        multirun.tell({"steps": config.total_timesteps, heading: attained_pct(folder)})


@hydra.main(config_name="evaluate", **CONFIG)
@_command
def evaluate(config: DictConfig) -> float:
    """Play policies on the same seeds; returns the last one's SLO attainment for sweepers."""
    from conserve_gym.agents import report
    from conserve_gym.agents.evaluation import play
    from conserve_gym.agents.policies import resolve
    from conserve_gym.agents.provenance import provenance, write_json
    from conserve_gym.agents.seeds import evaluation_seeds
    from conserve_gym.envs.configuration import ConfigurationError
    from conserve_gym.envs.randomised import of_seeds, scenarios
    from conserve_gym.envs.serving.timeline import Timeline
    from conserve_gym.metrics import CLOCKS

    if not isinstance(config.timeline, bool):
        raise ConfigurationError(f"timeline={config.timeline!r} must be true or false")
    if config.clock not in CLOCKS:
        raise ConfigurationError(f"clock={config.clock!r} is none of {', '.join(CLOCKS)}")
    seeds = evaluation_seeds(config.seeds)
    played = dict(zip(seeds, of_seeds(scenarios(config), seeds), strict=True))
    first = played[seeds[0]]
    names = _policy_names(config.policies)
    policies = [resolve(name, first.cluster) for name in names]
    _name_apart(policies, names)
    folder = _folder(config.output)
    cells = [(*each, seed) for each in zip(names, policies, strict=True) for seed in seeds]
    console = Console()
    episodes, timelines = [], []
    for name, policy, seed in track(cells, "playing", console=console, transient=True):
        built, called = played[seed], policy.name
        if built is not first:  # it may have another cluster
            policy = resolve(name, built.cluster)
            policy.name = called
        drawn = config.timeline and seed == seeds[0]
        timeline = Timeline(built.cluster.deployed(policy.deployment)) if drawn else None
        episodes.append(play(built, policy, seed, timeline))
        if timeline is not None:
            timelines += report.write_timeline(folder, episodes[-1], timeline)
    summary = report.summarise(episodes)
    setting = report.Setting.of(list(played.values()))
    written = report.write(folder, summary, episodes, setting)
    settings = OmegaConf.to_container(config, resolve=True)
    stamp = provenance(first.cluster)
    write_json(folder / "evaluation.json", {"config": settings, **stamp})
    console.print(report.table(summary, episodes, setting, config.clock, _overrides()))
    for path in (*written, folder / "evaluation.json", *timelines):
        console.print(str(path), soft_wrap=True)
    attained = {f"{name}, %": of["slo_attainment_pct"].mean for name, of in summary.items()}
    if multirun.is_job():
        multirun.tell(attained)
    return summary[policies[-1].name]["slo_attainment_pct"].mean


@hydra.main(config_name="tune", **CONFIG)
@_command
def tune(config: DictConfig) -> None:
    """Tune a rule's parameters on training episodes."""
    from conserve_gym.agents.tuning import tune as run

    console = Console()
    found = run(config, console)
    setting = ", ".join(f"{name}={value}" for name, value in found.parameters.items())
    console.print(
        f"{config.policy}: {setting}\nSLO attainment on the training episodes "
        f"{found.attainment_pct:.2f} %, default setting {found.default_pct:.2f} %\n"
        f"{found.path}",
        soft_wrap=True,
    )


@hydra.main(config_name="sweep", **CONFIG)
@_command
def sweep(config: DictConfig) -> None:
    """Find settings to train with."""
    from conserve_gym.agents.sweep import sweep as run

    console = Console()
    found = run(config, console)
    given = [o for o in HydraConfig.get().overrides.task if not o.startswith(_SWEEP_KEYS)]
    setting = [f"{key}={value}" for key, value in found.parameters.items()]
    says = f"SLO attainment on the validation episodes {found.attained_pct:.2f} %"
    if found.configured_pct is not None:
        says += f", as configured {found.configured_pct:.2f} %"
    if found.left:
        says += f"; {found.left} trials are not complete"
    console.print(says)
    for path in found.written:
        console.print(str(path), soft_wrap=True)
    console.print(shlex.join(["python", "scripts/train.py", *given, *setting]), soft_wrap=True)


@hydra.main(config_name="ablate", **CONFIG)
@_command
def ablate(config: DictConfig) -> None:
    """Find out what observations are worth, and what perfect predictions would be."""
    from conserve_gym.agents.ablation.study import run

    console = Console()
    for path in run(config, console):
        console.print(str(path), soft_wrap=True)


@hydra.main(config_name="explain", **CONFIG)
@_command
def explain(config: DictConfig) -> None:
    """Explain a policy's decisions, and distil a rule from them."""
    from conserve_gym.agents.explanation.study import run

    console = Console()
    for path in run(config, console):
        console.print(str(path), soft_wrap=True)


@hydra.main(config_name="project", **CONFIG)
@_command
def project(config: DictConfig) -> None:
    """Project a policy onto thresholds that routers already have."""
    from conserve_gym.agents.explanation.project import run

    console = Console()
    for path in run(config, console):
        console.print(str(path), soft_wrap=True)


@hydra.main(config_name="export", **CONFIG)
@_command
def export(config: DictConfig) -> None:
    """Write the trained policy of ``run`` in the form that the runtime loads."""
    from conserve_gym.agents.export import export as write

    run = Path(config.run)
    target = Path(config.output) if config.output else run / "policy"
    scheduler = write(run, target, config.preference)
    assert scheduler.artifact is not None
    size = sum(path.stat().st_size for path in (target.iterdir() if target.is_dir() else [target]))
    Console().print(
        f"exported: {target} ({size / 1024:.0f} KiB, {scheduler.artifact.action_kind} actions, "
        "golden vectors verified without torch)",
        soft_wrap=True,
    )


@hydra.main(config_name="calibrate", **CONFIG)
@_command
def calibrate(config: DictConfig) -> None:
    """Fit the step law of a GPU and a model, and write it as a hardware file."""
    from conserve_gym.agents.calibrate import calibrate as run

    run(config, Console())


@hydra.main(config_name="twin", **CONFIG)
@_command
def twin(config: DictConfig) -> None:
    """Play conversations on real engines and on the simulator that was calibrated on them."""
    from conserve_gym.envs.configuration import ConfigurationError

    try:
        from conserve_gym.agents.twin.run import run
    except ImportError as error:
        raise ConfigurationError(f"{error}: pip install 'conserve-gym[twin]'") from None
    console = Console()
    for path in run(config, console):
        console.print(str(path), soft_wrap=True)


@hydra.main(config_name="validate", **CONFIG)
@_command
def validate(config: DictConfig) -> None:
    """Print the fidelity report and write ``fidelity.csv``; exits with 1 if a limit is broken."""
    from conserve_gym.agents import fidelity
    from conserve_gym.agents.fidelity_check import Check
    from conserve_gym.envs.workloads.conversation import WorkloadError

    measurements, traces = (_given_folder(config, key) for key in ("measurements", "traces"))
    folder = _folder(config.output)
    console = Console()
    groups = list(fidelity.groups(measurements, traces))
    checks: list[Check] = []
    not_checked: list[tuple[str, str]] = []
    for name, run, missing in track(groups, "checking", console=console, transient=True):
        if run is None:
            not_checked.append((name, missing))
            continue
        try:
            checks += list(run())  # all of a group or nothing
        except FileNotFoundError as error:
            not_checked.append((name, f"{error.filename}: no such file"))
        except WorkloadError as error:
            not_checked.append((name, str(error)))
    console.print(fidelity.table(checks))
    for name, reason in fidelity.NOT_CHECKED:
        console.print(f"no check covers {name}: {reason}", soft_wrap=True)
    for name, reason in not_checked:
        console.print(f"not checked: {name}: {reason}", soft_wrap=True)
    broken = [check for check in checks if not check.holds]
    console.print(
        f"{len(checks) - len(broken)} of {len(checks)} checks hold; "
        f"{len(not_checked)} groups not checked"
    )
    path = folder / "fidelity.csv"
    fidelity.write(path, checks)
    console.print(str(path), soft_wrap=True)
    if broken:
        sys.exit(1)


@hydra.main(config_name="reproduce", **CONFIG)
@_command
def reproduce(config: DictConfig) -> None:
    """Re-create the paper's evaluation: tables, pictures and a report."""
    from conserve_gym.agents.reproduction import campaign, pictures, report, table
    from conserve_gym.agents.reproduction.cells import paper_scenario
    from conserve_gym.agents.reproduction.spec import ReproductionSpec
    from conserve_gym.agents.reproduction.values import Values
    from conserve_gym.envs.configuration import validated

    spec = validated(ReproductionSpec, config)
    scenario = paper_scenario(spec.workload)
    workload, caveats = scenario.workload.name, "; ".join(scenario.cluster.caveats)
    _folder(str(spec.output))
    console = Console()
    settings = {key: str(config[key]) for key in ("workload", "redraw")}
    settings |= {f"scenarios.{name}": str(one) for name, one in config.scenarios.items()}
    results = campaign.run(spec, settings, console)
    values = Values(results)
    written = table.write(spec.output, table.table(table.frame(results)))
    written += pictures.write(spec, values, workload)
    written.append(report.write(spec, values, workload, sys.argv, caveats))
    console.print(table.on_screen(spec, values, workload))
    console.print(report.verdict(spec, values))
    for path in written:
        console.print(str(path), soft_wrap=True)


@hydra.main(config_name="benchmark", **CONFIG)
@_command
def benchmark(config: DictConfig) -> None:
    """Rank policies on the same episodes, or play rows again; exits with 1 if those differ."""
    from conserve_gym.agents.benchmark.run import run
    from conserve_gym.agents.benchmark.verify import verify

    if config.verify is None:
        run(config, Console())
    elif not verify(Path(str(config.verify)), config.rows, Console()):
        sys.exit(1)


@hydra.main(config_name="serve", **CONFIG)
@_command
def serve(config: DictConfig) -> None:
    """Serve OpenAI's API in front of real engines until stopped."""
    from conserve_gym.envs.configuration import ConfigurationError, validated

    _ = config.engines  # said to be needed before anything else is looked at
    try:
        from conserve_gym.agents.router.serve import serve as run
    except ImportError as error:
        raise ConfigurationError(f"{error}: pip install 'conserve-gym[router]'") from None
    from conserve_gym.agents.router.spec import RouterSpec

    run(validated(RouterSpec, config))


@hydra.main(config_name="pick_endpoints", **CONFIG)
@_command
def pick_endpoints(config: DictConfig) -> None:
    """Tell Envoy where requests go until stopped."""
    from conserve_gym.envs.configuration import ConfigurationError, validated

    _ = config.engines  # said to be needed before anything else is looked at
    try:
        from conserve_gym.agents.bridges.envoy import serve as run
    except ImportError as error:
        raise ConfigurationError(f"{error}: pip install 'conserve-gym[bridges-envoy]'") from None
    from conserve_gym.agents.router.spec import RouterSpec

    run(validated(RouterSpec, config))


@hydra.main(config_name="replay", **CONFIG)
@_command
def replay(config: DictConfig) -> None:
    """Decide again on a router's log; exits with 1 if a decision differs."""
    from conserve_gym.agents.runtime.replay import by_checksum
    from conserve_gym.agents.runtime.replay import replay as run
    from conserve_gym.agents.runtime.scheduler import Scheduler

    policies = by_checksum(Scheduler.load(str(path)) for path in config.policies)
    replayed = list(run(Path(str(config.log)), policies))
    differ = [one for one in replayed if not one.same]
    for one in differ[:10]:
        print(f"{one.time:.3f} s, conversation {one.conversation}: {one.online}, {one.offline}")
    print(f"{len(replayed)} decisions, {len(replayed) - len(differ)} the same offline")
    if differ:
        sys.exit(1)


@hydra.main(config_name="fetch_traces", **CONFIG)
@_command
def fetch_traces(config: DictConfig) -> None:
    """Fetch public recordings into a folder, or show which there are."""
    from conserve_gym.envs.configuration import ConfigurationError, validated
    from conserve_gym.envs.workloads.fetch import SUMS, Original, fetch

    originals = validated(dict[str, Original], config.originals, "originals")
    console = Console()
    if not isinstance(config.convert, bool):
        raise ConfigurationError(f"convert={config.convert!r} must be true or false")
    if config.names is None:
        for name, one in originals.items():
            console.print(f"{name}: {one.says}; {one.licence}\n  {one.address}", soft_wrap=True)
        console.print("names=[...] fetches them, names=all every one")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    for name in _original_names(config.names, list(originals)):
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(name, total=None)
            show = functools.partial(_show_progress, progress, task)
            fetched = fetch(originals[name], Path(str(config.output)).expanduser(), show)
        says = "fetched" if fetched.came else "already here"
        says += ", verified" if fetched.verified else f", its SHA-256 now written down in {SUMS}"
        console.print(f"{name}: {says}\n{fetched.path}", soft_wrap=True)
        if config.convert:
            _convert(fetched.path, console)


def _convert(path: Path, console: Console) -> None:
    """Write a recording as our own csv beside it."""
    from conserve_gym.envs.workloads.convert import convert
    from conserve_gym.envs.workloads.readers.registry import open_recordings

    target = path.with_name(f"{path.name.partition('.')[0]}.conserve.csv.gz")
    source, recordings = open_recordings(path, on_error="skip")
    written = convert(recordings, target)
    says = f"{written.conversations:,} conversations, {written.turns:,} turns"
    if source.skipped:
        says += f"; {source.skipped:,} with bad rows left out: {source.problems[0]}"
    console.print(f"{target}: {says}", soft_wrap=True)


def _show_progress(progress: Progress, task: TaskID, here: int, total: int | None) -> None:
    progress.update(task, completed=here, total=total)


def _original_names(value: object, known: list[str]) -> list[str]:
    from conserve_gym.envs.configuration import ConfigurationError

    if value == "all":
        return known
    names = [str(name) for name in value] if isinstance(value, ListConfig) else [str(value)]
    for name in names:
        if name not in known:
            raise ConfigurationError(f"names={name} is none of all, {', '.join(known)}")
    return names


@_command
def workload() -> None:
    """Look at recordings, convert them, or fit figures to them: ``profile FILE key=value``."""
    from conserve_gym.agents.positional import keyed

    sys.argv[1:] = keyed(sys.argv[1:])
    _workload()


@hydra.main(config_name="workload_tool", **CONFIG)
@_command
def _workload(config: DictConfig) -> None:
    from conserve_gym.agents.workload_tool import run

    _ = config.do, config.path  # said to be needed before anything else is looked at
    run(config, Console())


def _given_folder(config: DictConfig, key: str) -> Path | None:
    """Return a folder to read, None if it is a default that is not there.

    Raises:
        ConfigurationError: It was named on the command line and is not there.
    """
    from conserve_gym.envs.configuration import ConfigurationError

    path = Path(str(config[key]))
    if path.is_dir():
        return path
    if any(o.lstrip("+").startswith(f"{key}=") for o in HydraConfig.get().overrides.task):
        raise ConfigurationError(f"{key}={path}: no such folder")
    return None


def _folder(output: str) -> Path:
    """Return a folder to write to."""
    from conserve_gym.envs.configuration import ConfigurationError

    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"output={folder}: {error.strerror}") from None
    return folder


def _overrides() -> list[str]:
    """Return what was set on the command line, but for what the table shows anyway."""
    shown = ("policies=", "seeds=", "output=", "clock=", "timeline=", "workload.path=")
    return [o for o in HydraConfig.get().overrides.task if not o.startswith(shown)]


def _policy_names(value: object) -> list[Any]:
    from conserve_gym.envs.configuration import ConfigurationError

    given = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
    names = given if isinstance(given, list) else [given]
    if not names or any(names.count(name) > 1 for name in names):
        raise ConfigurationError(f"policies={names} must name at least one, and none twice")
    return names


def _name_apart(policies: list[Policy], names: list[Any]) -> None:
    """Call policies by what the user wrote where two would have one name."""
    called = [policy.name for policy in policies]
    for policy, name in zip(policies, names, strict=True):
        if called.count(policy.name) > 1:
            policy.name = str(name)
