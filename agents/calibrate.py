"""From measured steps, a live endpoint or public figures to a hardware file."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import replace
from datetime import date
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig
from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import Progress

from conserve_gym.agents import calibration_report as report
from conserve_gym.envs.calibration import check as checking
from conserve_gym.envs.calibration import derive, hardware_file
from conserve_gym.envs.calibration.check import Check
from conserve_gym.envs.calibration.endpoint import Client, Endpoint, Prompts
from conserve_gym.envs.calibration.errors import PhaseErrors, by_phase
from conserve_gym.envs.calibration.fit import Laws, fit
from conserve_gym.envs.calibration.laws import NO_OVERHEAD
from conserve_gym.envs.calibration.measure import Measurement, Overhead, Plan
from conserve_gym.envs.calibration.steps import CalibrationError, Steps
from conserve_gym.envs.configuration import ConfigurationError, validated
from conserve_gym.envs.serving.hardware import Hardware, Provenance
from conserve_gym.envs.serving.physics import fastest_step_s
from conserve_gym.errors import ConServeGymError

# The tier of the default cluster, which the printed command replaces.
_REPLACED = "hardware@cluster.hardware.a40_300w"

# A lone prompt that takes so many times what is predicted tells of a machine that has changed.
_SLOWER = 1.2


class _Source(NamedTuple):
    """Measured steps and what is known of them."""

    steps: Steps
    says: str
    comment: list[str]
    overhead: Overhead | None


def calibrate(config: DictConfig, console: Console) -> Path:
    """Write a hardware file, what it was fitted to, and how well it holds.

    Returns:
        The hardware file.

    Raises:
        ConServeGymError: Something given is not right, or the endpoint fails.
    """
    for group in ("gpu", "model"):
        if group not in config:
            raise ConfigurationError(f"{group} is needed: {group}=...; --help lists them")
    gpu = validated(derive.Gpu, config.gpu, "gpu")
    model = validated(derive.Model, config.model, "model")
    name = str(config.name)
    if not name or Path(name).name != name:
        raise ConfigurationError(f"name={name!r} is no name of a file")
    if (resources.files("conserve_gym.conf") / "hardware" / f"{name}.yaml").is_file():
        raise ConfigurationError(
            f"name={name!r} is a tier of this project, which Hydra would find first"
        )
    checked = _count(config.check_requests, "check_requests")
    seed = _count(config.seed, "seed")
    folder = Path(config.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"output={folder} is a file")
    derived = derive.hardware(gpu, model)
    derived = replace(derived, provenance=replace(derived.provenance, date=_today()))
    if config.steps is not None and config.endpoint.url is not None:
        raise ConfigurationError("steps and endpoint.url are two sources; one of them is enough")
    if config.steps is None and config.endpoint.url is None:
        comment = ["Derived from public figures: nothing was measured."]
        path = _write_hardware(folder, name, derived, comment)
        console.print(report.coefficients(name, derived))
        console.print(comment[0])
        console.print(str(path), soft_wrap=True)
        _show_use(console, folder, name)
        return path
    found: Check | None = None
    with Progress(console=console, transient=True) as progress:
        if config.steps is not None:
            path = Path(config.steps)
            source = _Source(Steps.read(path), f"measured steps, {path.name}", [], None)
        else:
            endpoint = validated(Endpoint, config.endpoint, "endpoint")
            plan = validated(Plan, config.plan, "plan")
            source = asyncio.run(_measured(endpoint, plan, folder, progress))
        tile_from = _count(config.plan.tile_from, "plan.tile_from")
        hardware, errors = _fitted(source, derived, tile_from, progress)
        written = [_write_hardware(folder, name, hardware, source.comment), folder / "steps.csv"]
        source.steps.write(folder / "steps.csv", source.comment)
        if source.overhead and checked:
            try:
                found = asyncio.run(_checked(endpoint, plan, hardware, checked, seed, progress))
            except ConServeGymError as error:
                raise CalibrationError(f"{error}; {written[0]} was not checked") from None
    written += report.write(folder, errors, found)
    console.print(report.coefficients(name, hardware))
    console.print(report.errors(errors))
    if found:
        console.print(report.check(found))
        before, after, predicted = found.lone_ms
        if max(before, after) > _SLOWER * predicted or min(before, after) < predicted / _SLOWER:
            console.print(
                "[yellow]warning:[/] the engine is not as fast as when it was measured: does "
                "anything else run there?",
                soft_wrap=True,
            )
    for line in source.comment:
        console.print(line, soft_wrap=True)
    _warn_of_impossible_steps(console, source.steps, hardware)
    for path in written:
        console.print(str(path), soft_wrap=True)
    _show_use(console, folder, name)
    return written[0]


async def _measured(endpoint: Endpoint, plan: Plan, folder: Path, progress: Progress) -> _Source:
    """Measure an endpoint; what was measured before a failure is kept."""
    async with Client(endpoint) as client:
        measurement = Measurement(client, plan, Prompts(endpoint))
        task = progress.add_task("measuring", total=plan.cells)
        try:
            await measurement.run(lambda: progress.advance(task))
        except ConServeGymError as error:
            if count := len(measurement.steps):
                kept = f"{count} steps measured so far are kept in {folder / 'steps.csv'}"
                raise CalibrationError(f"{error}; {kept}") from None
            raise
        finally:
            if len(measurement.steps):
                folder.mkdir(parents=True, exist_ok=True)
                measurement.steps.write(folder / "steps.csv", _comment(endpoint, plan, measurement))
        return _Source(
            measurement.steps,
            f"{endpoint.model} at an endpoint, {len(measurement.steps)} measured steps",
            _comment(endpoint, plan, measurement),
            measurement.overhead,
        )


def _comment(endpoint: Endpoint, plan: Plan, measurement: Measurement) -> list[str]:
    overhead = measurement.overhead
    assert overhead is not None
    return [
        f"Measured at {endpoint.url} ({endpoint.model}) on {_today()}, "
        f"{plan.token_budget} tokens and {plan.max_sequences} sequences a step.",
        f"A minimal request takes {overhead.minimal_ms:.3g} ms and a decode's step "
        f"{overhead.step_ms:.3g} ms: the {overhead.ms:.3g} ms between them are client, network and "
        "parsing, and are taken off prompts (overhead.request_ms).",
        *(f"Left out: {note}" for note in measurement.notes),
    ]


def _fitted(
    source: _Source, derived: Hardware, tile_from: int, progress: Progress
) -> tuple[Hardware, list[PhaseErrors]]:
    task = progress.add_task("fitting", total=4)

    def advance() -> None:
        progress.advance(task)

    laws: Laws = fit(source.steps, tile_from=tile_from)
    advance()
    errors = by_phase(source.steps, laws, advance)
    holdout = {phase.phase: float(phase.left_out_pct.mean()) for phase in errors}
    carried = ("power",) if len(source.steps.mixed) else ("mixed steps", "power")
    hardware = replace(
        derived,
        prefill=laws.prefill,
        decode=laws.decode,
        mixed=laws.mixed,
        overhead=replace(NO_OVERHEAD, request_ms=source.overhead.ms if source.overhead else 0.0),
        provenance=Provenance(
            source.says, _today(), derived=False, carried=carried, holdout_error_pct=holdout
        ),
    )
    return hardware, errors


async def _checked(
    endpoint: Endpoint,
    plan: Plan,
    hardware: Hardware,
    requests: int,
    seed: int,
    progress: Progress,
) -> Check:
    task = progress.add_task("checking", total=requests)
    arrivals = checking.draw(hardware, plan, requests, seed)
    async with Client(endpoint) as client:
        return await checking.run(
            client,
            Prompts(endpoint),
            arrivals,
            hardware,
            plan,
            lambda: progress.advance(task),
        )


def _write_hardware(folder: Path, name: str, hardware: Hardware, comment: list[str]) -> Path:
    path = folder / "hardware" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{hardware.gpu} with {hardware.model}; written by scripts/calibrate.py.",
        *comment,
        "power: from public figures of the GPU, not measured.",
    ]
    hardware_file.write(path, hardware, lines)
    return path


def _warn_of_impossible_steps(console: Console, steps: Steps, hardware: Hardware) -> None:
    laws = Laws(hardware.prefill, hardware.decode, hardware.mixed)
    columns = (steps.prompt_tokens, steps.context_tokens, steps.sequences, steps.kv_tokens)
    limits = [
        1e3 * fastest_step_s(hardware, *(int(value) for value in row))
        for row in zip(*columns, strict=True)
    ]
    too_fast = laws.step_ms(steps) < limits
    if too_fast.any():
        console.print(
            f"[yellow]warning:[/] {too_fast.sum()} of {len(steps)} steps are predicted faster than "
            f"{hardware.gpu} can be: are gpu and model the right ones?",
            soft_wrap=True,
        )


def _show_use(console: Console, folder: Path, name: str) -> None:
    where = shlex.quote(str(folder))
    console.print(
        f"use it: python scripts/evaluate.py --config-dir {where} {_REPLACED}={name}",
        soft_wrap=True,
    )


def _count(value: object, name: str) -> int:
    try:
        return TypeAdapter(NonNegativeInt).validate_python(value)
    except ValidationError:
        raise ConfigurationError(f"{name}={value!r} must be a number from 0 on") from None


def _today() -> str:
    return date.today().isoformat()
