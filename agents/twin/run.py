"""A twin from its configuration to its files: calibrate, play on both sides, compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress

from conserve_gym.agents.provenance import provenance, write_json
from conserve_gym.agents.seeds import FIRST_TRAINING_SEED, evaluation_seeds
from conserve_gym.agents.twin import calibration, comparison, picture, policies, simulation
from conserve_gym.agents.twin.engines import running
from conserve_gym.agents.twin.reality import play
from conserve_gym.agents.twin.spec import TwinSpec
from conserve_gym.envs.calibration.derive import Model
from conserve_gym.envs.configuration import arrivals, validated, validated_part, workload
from conserve_gym.envs.workloads.workload import draw_episode


def run(config: DictConfig, console: Console) -> list[Path]:
    """Compare the simulator with real engines.

    Returns:
        The files that tell.

    Raises:
        ConServeGymError: Something given is not right, or an engine, a router or a turn fails.
    """
    spec = validated_part(TwinSpec, config)
    seeds = evaluation_seeds(config.seeds)
    drawn = workload(config), arrivals(config)
    episodes = {seed: draw_episode(*drawn, np.random.default_rng(seed)) for seed in seeds}
    tuned_on = [
        draw_episode(*drawn, np.random.default_rng(FIRST_TRAINING_SEED + i))
        for i in range(spec.tuning.seeds)
    ]
    folder = spec.output
    folder.mkdir(parents=True, exist_ok=True)
    runs: list[comparison.Run] = []
    with running(spec, validated(Model, config.model, "model")) as engines:
        if spec.calibrated is not None:
            cluster = calibration.read(spec, spec.calibrated / "calibration")
        else:
            cluster = calibration.measured(config, spec, engines, folder / "calibration", console)
        exported = [
            policies.exported(name, cluster, spec.tuning, tuned_on, folder / "policies")
            for name in spec.policies
        ]
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("playing", total=len(seeds) * len(exported))
            # Episode by episode, so that a machine that changes changes for all policies.
            for seed, episode in episodes.items():
                for name, path in exported:
                    where = folder / "routers" / f"{path.stem}-{seed}"
                    real = play(engines, path, episode, f"{seed} {name}", where)
                    simulated = simulation.play(cluster, path, real.conversations)
                    runs.append(comparison.compared(name, seed, real, list(simulated.ledger)))
                    progress.advance(task)
    found = comparison.agreements(runs)
    title = f"{drawn[0].name}; {drawn[1].name}; {engines.layout}"
    console.print(picture.table(runs, found, title))
    says = picture.verdict(runs, found)
    console.print(says, soft_wrap=True)
    (folder / "verdict.txt").write_text(says + "\n", "utf-8")
    settings = OmegaConf.to_container(config, resolve=True)
    write_json(folder / "twin.json", {"config": settings, **provenance(cluster)})
    written = comparison.write(folder, runs, found)
    written.append(picture.write(folder / "twin.png", runs, found, title))
    return [*written, folder / "verdict.txt", folder / "twin.json"]
