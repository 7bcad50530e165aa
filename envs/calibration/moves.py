"""Measures what moving KV between two llama.cpp servers takes: a slot is saved, and restored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from conserve_gym.envs.calibration.endpoint import EndpointError
from conserve_gym.envs.calibration.steps import CalibrationError
from conserve_gym.envs.serving.network_spec import LinkSpec

if TYPE_CHECKING:
    import aiohttp

_FILE = "conserve-calibration.bin"
_LEAST_MS = 1e-3


class Move(NamedTuple):
    """A slot that was moved.

    Attributes:
        tokens: Tokens in it.
        size_bytes: Size of its file.
        save_ms: Until the first engine had written it.
        restore_ms: Until the other one had read it.
    """

    tokens: int
    size_bytes: int
    save_ms: float
    restore_ms: float


async def measure(
    urls: tuple[str, str],
    folder: Path,
    prompts: Sequence[Sequence[int]],
    repeats: int,
) -> list[Move]:
    """Move prompts from one engine to another and back, by their slots 0, while nothing else runs.

    Args:
        urls: Addresses of the engines.
        folder: Their common ``--slot-save-path``.
        prompts: Token ids.
        repeats: How often each is moved.

    Returns:
        The moves; times are those of the whole request, as a router feels them.

    Raises:
        EndpointError: An engine fails.
    """
    import aiohttp

    connector = aiohttp.TCPConnector(force_close=True)  # as the router's adapter has it
    moves = []
    async with aiohttp.ClientSession(connector=connector) as session:
        for prompt in prompts:
            source, target = urls
            body = {"prompt": list(prompt), "n_predict": 1, "id_slot": 0, "cache_prompt": True}
            await _ask(session, f"{source}/completion", body)
            for _ in range(repeats):
                saved, save_ms = await _slot(session, source, "save")
                _, restore_ms = await _slot(session, target, "restore")
                sizes = int(saved["n_saved"]), int(saved["n_written"])
                moves.append(Move(*sizes, save_ms, restore_ms))
                source, target = target, source
    (folder / _FILE).unlink(missing_ok=True)
    return moves


def fit(moves: Sequence[Move]) -> LinkSpec:
    """Return the law of a move: a constant, and its bytes at a bandwidth; engines stop for it.

    Raises:
        CalibrationError: All moves are of one size.
    """
    by_size: dict[int, list[float]] = {}
    for move in moves:
        by_size.setdefault(move.size_bytes, []).append(move.save_ms + move.restore_ms)
    if len(by_size) < 2:
        raise CalibrationError("moves of at least two sizes are needed")
    sizes = np.array(list(by_size), dtype=np.float64)
    ms = np.array([median(times) for times in by_size.values()])
    slope, constant = np.polyfit(sizes, ms, 1)
    if slope <= 0.0:  # lost in the noise: all of it is constant
        slope, constant = _LEAST_MS / sizes.max(), ms.mean()
    constant_ms, gb_per_s = max(float(constant), 0.0), float(1e-6 / slope)
    return LinkSpec(constant_ms, gb_per_s, exposed_share=1.0, stops_engines=True)


async def _slot(
    session: aiohttp.ClientSession, url: str, action: str
) -> tuple[dict[str, Any], float]:
    clock = asyncio.get_running_loop().time
    began = clock()
    found = await _ask(session, f"{url}/slots/0?action={action}", {"filename": _FILE})
    return found, 1e3 * (clock() - began)


async def _ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    import aiohttp

    try:
        async with session.post(url, json=body) as response:
            if response.status != 200:
                answer = " ".join((await response.text(errors="replace")).split())
                raise EndpointError(f"{url}: HTTP {response.status}: {answer[:200]}")
            found: dict[str, Any] = await response.json()
            return found
    except (aiohttp.ClientError, OSError) as error:
        raise EndpointError(f"{url}: {error}") from None
