"""Calibrates the simulated side of a twin on its real engines."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter
from rich.console import Console

from conserve_gym.agents.calibrate import calibrate
from conserve_gym.agents.provenance import write_json
from conserve_gym.agents.twin import simulation, tiny_llama
from conserve_gym.agents.twin.engines import Engines
from conserve_gym.agents.twin.spec import TwinSpec
from conserve_gym.envs.calibration import moves
from conserve_gym.envs.configuration import ConfigurationError, validated
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.network_spec import LinkSpec
from conserve_gym.files import whole

_NAME = "twin"
_LINK = "link.json"
_MOVED_TOKENS = (64, 512, 1024, 2048)
_MOVES = 8


def measured(
    config: DictConfig, spec: TwinSpec, engines: Engines, folder: Path, console: Console
) -> ClusterSpec:
    """Measure steps at one engine and moves between two, and return the cluster that has them.

    The engine is the last one that decodes; the others are taken to be like it.

    Raises:
        ConServeGymError: An engine fails, or what was measured fits no law.
    """
    decoder = [one for one in engines.each if one.role.decodes][-1]
    keys = ("gpu", "model", "check_requests", "seed")
    asked: dict[str, Any] = {key: config[key] for key in keys}
    asked |= {"name": _NAME, "steps": None, "output": str(folder)}
    asked["endpoint"] = {**config.endpoint, "url": decoder.url}
    if engines.speaks_letters:
        asked["endpoint"] |= {"prompts": "token_ids", "token_ids": list(tiny_llama.TOKEN_IDS)}
    limits = {"token_budget": spec.token_budget, "max_sequences": spec.max_sequences}
    asked["plan"] = {**config.plan, **limits}
    path = calibrate(OmegaConf.create(asked), console)
    hardware = validated(Hardware, OmegaConf.load(path))
    link = spec.link or _link(engines, folder, hardware.overhead.request_ms)
    write_json(folder / _LINK, asdict(link))
    return read(spec, folder)


def read(spec: TwinSpec, folder: Path) -> ClusterSpec:
    """Return the cluster of an earlier calibration, and write it for other commands to use.

    Raises:
        ConfigurationError: There is none.
    """
    try:
        section = OmegaConf.load(folder / "hardware" / f"{_NAME}.yaml")
        link = json.loads((folder / _LINK).read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"calibrated={folder.parent}: {error}") from None
    hardware = validated(Hardware, section)
    cluster = simulation.cluster(spec, hardware, LinkSpec(**link))
    path = folder / "cluster" / f"{_NAME}.yaml"
    path.parent.mkdir(exist_ok=True)
    with whole(path) as partial:
        OmegaConf.save(OmegaConf.create(_plain(cluster)), partial)
    return cluster


def _plain(cluster: ClusterSpec) -> Any:
    """Return a cluster as plain values."""
    return TypeAdapter(ClusterSpec).dump_python(cluster, mode="json")


def _link(engines: Engines, folder: Path, request_ms: float) -> LinkSpec:
    """Measure moves between the first two engines.

    Raises:
        ConfigurationError: They are none of llama.cpp.
    """
    if len(engines.each) < 2:
        return LinkSpec(0.0, 1.0, 1.0)  # nothing ever moves
    if engines.slot_folder is None or engines.each[0].adapter != "llamacpp":
        raise ConfigurationError("moves are measured between llama.cpp engines alone: give link")
    rng = random.Random(0)
    first, last = tiny_llama.TOKEN_IDS
    prompts = [[rng.randint(first, last) for _ in range(n)] for n in _MOVED_TOKENS]
    urls = engines.each[0].url, engines.each[-1].url
    found = asyncio.run(moves.measure(urls, engines.slot_folder, prompts, _MOVES))
    with whole(folder / "moves.csv") as partial:
        lines = [",".join(moves.Move._fields), *(",".join(map(str, move)) for move in found)]
        partial.write_text("\n".join(lines) + "\n", "utf-8")
    link = moves.fit(found)
    # The simulated engines are asked for both halves by requests, which are in what was measured.
    return replace(link, latency_ms=max(link.latency_ms - 2 * request_ms, 0.0))
