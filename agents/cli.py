"""The commands. Configuration is Hydra's; see ``--help`` of each."""

from __future__ import annotations

import functools
import importlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from rich.console import Console
from rich.progress import track

from conserve_gym.agents import multirun
from conserve_gym.errors import ConServeGymError

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
    from conserve_gym.agents.evaluate import run

    attained = run(config, HydraConfig.get().overrides.task, Console())
    if multirun.is_job():
        multirun.tell({f"{name}, %": pct for name, pct in attained.items()})
    return list(attained.values())[-1]


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
    from conserve_gym.envs.configuration import output_folder
    from conserve_gym.envs.workloads.conversation import WorkloadError

    measurements, traces = (_given_folder(config, key) for key in ("measurements", "traces"))
    folder = output_folder(config.output)
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
    from conserve_gym.envs.configuration import output_folder, validated

    spec = validated(ReproductionSpec, config)
    scenario = paper_scenario(spec.workload)
    workload, caveats = scenario.workload.name, "; ".join(scenario.cluster.caveats)
    output_folder(spec.output)
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
    _route(config, "conserve_gym.agents.router.serve", "router")


@hydra.main(config_name="pick_endpoints", **CONFIG)
@_command
def pick_endpoints(config: DictConfig) -> None:
    """Tell Envoy where requests go until stopped."""
    _route(config, "conserve_gym.agents.bridges.envoy", "bridges-envoy")


@hydra.main(config_name="replay", **CONFIG)
@_command
def replay(config: DictConfig) -> None:
    """Decide again on a router's log; exits with 1 if a decision differs."""
    from conserve_gym.agents.router.policies import scheduler
    from conserve_gym.agents.runtime.replay import by_checksum, fleet_of
    from conserve_gym.agents.runtime.replay import replay as run

    log = Path(str(config.log))
    fleet = fleet_of(log)
    asked = cast(list[Any], OmegaConf.to_container(config.policies))
    policies = by_checksum(scheduler("policies", one, fleet) for one in asked)
    replayed = list(run(log, policies))
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
    from conserve_gym.agents.fetch_tool import run

    run(config, Console())


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


def _route(config: DictConfig, module: str, extra: str) -> None:
    """Run what serves engines, from a module that needs an extra.

    Raises:
        ConfigurationError: The extra is not installed, or a value is not right.
    """
    from conserve_gym.envs.configuration import ConfigurationError, validated

    _ = config.engines  # said to be needed before anything else is looked at
    try:
        serve = importlib.import_module(module).serve
        from conserve_gym.agents.router.spec import RouterSpec
    except ImportError as error:
        raise ConfigurationError(f"{error}: pip install 'conserve-gym[{extra}]'") from None
    serve(validated(RouterSpec, config))
