"""Measure what routers add to the latency of the same engines, and the rate at which they hold.

``python scripts/router_load.py direct=http://H:P ours=http://H:P theirs=http://H:P`` asks each, in
turns, for one token after a short prompt of a new conversation: first one request after another,
then at rising rates. A rate holds when as many requests are answered as come, and 99 of 100 within
a quarter of a second.
"""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import count

import aiohttp
import numpy as np
from rich.console import Console
from rich.table import Table

LONE = 300
ROUNDS = 3
RATES = (25, 50, 100, 150, 200, 300, 400, 600, 800)
RATE_S = 4.0
HOLDS_S = 0.25

_numbers = count(int(time.time()) % 1_000_000 * 100_000)


async def once(session: aiohttp.ClientSession, url: str, model: str) -> float:
    """Return the seconds of a request."""
    number = next(_numbers)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"{number} is a number"}],
        "max_tokens": 1,
        "temperature": 0,
    }
    headers = {"x-session-id": str(number), "x-session-final": "true"}
    began = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
        text = await answer.text()
        if answer.status != 200:
            raise SystemExit(f"{url}: HTTP {answer.status}: {text[:200]}")
    return time.perf_counter() - began


async def at_rate(session: aiohttp.ClientSession, url: str, model: str, rate: float) -> list[float]:
    """Return the seconds of requests that come at a rate, however many are under way."""
    tasks = []
    began = time.perf_counter()
    for i in range(int(rate * RATE_S)):
        await asyncio.sleep(max(began + i / rate - time.perf_counter(), 0.0))
        tasks.append(asyncio.create_task(once(session, url, model)))
    return list(await asyncio.gather(*tasks))


async def main(targets: dict[str, str]) -> None:
    """Measure every target and show a table."""
    console = Console()
    table = Table("target", "p50 ms", "p99 ms", "added p50", "added p99", "holds 1/s")
    timeout = aiohttp.ClientTimeout(total=60)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        async with session.get(f"{next(iter(targets.values()))}/v1/models") as answer:
            model = (await answer.json(content_type=None))["data"][0]["id"]
        lone: dict[str, list[float]] = {name: [] for name in targets}
        for _ in range(ROUNDS):
            for name, url in targets.items():
                lone[name] += [await once(session, url, model) for _ in range(LONE // ROUNDS)]
        first: tuple[float, float] | None = None
        for name, url in targets.items():
            p50, p99 = (float(q) for q in np.percentile(np.array(lone[name]) * 1e3, (50, 99)))
            first = first or (p50, p99)
            held = 0
            for rate in RATES:
                began = time.perf_counter()
                spans = await at_rate(session, url, model, rate)
                late_s = time.perf_counter() - began - RATE_S
                if np.percentile(spans, 99) > HOLDS_S or late_s > HOLDS_S:
                    break
                held = rate
            added = (f"{p50 - first[0]:+.2f}", f"{p99 - first[1]:+.2f}")
            table.add_row(name, f"{p50:.2f}", f"{p99:.2f}", *added, str(held))
    console.print(table)


if __name__ == "__main__":
    if len(sys.argv) < 2 or not all("=http" in one for one in sys.argv[1:]):
        raise SystemExit(__doc__)
    asyncio.run(main(dict(one.split("=", 1) for one in sys.argv[1:])))
