"""Runs a router until it is stopped."""

from __future__ import annotations

import asyncio
import gc
import signal

from aiohttp import web

from conserve_gym.agents.router.app import application, runner
from conserve_gym.agents.router.router import Router
from conserve_gym.agents.router.spec import RouterSpec


def serve(spec: RouterSpec) -> None:
    """Serve until SIGTERM or SIGINT; the address is printed when it is open.

    Raises:
        RouterError: It cannot start as configured.
        OSError: The address cannot be listened on.
    """
    asyncio.run(_serve(spec))


def stop_signal() -> asyncio.Event:
    """Return what SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _serve(spec: RouterSpec) -> None:
    stop = stop_signal()
    async with Router(spec) as router:
        served = runner(application(router), router)
        await served.setup()
        # What is loaded stays: a full collection would walk it, and decisions wait 20 ms and more.
        gc.collect()
        gc.freeze()
        try:
            site = web.TCPSite(served, spec.host, spec.port)
            await site.start()
            host, port = served.addresses[0][:2]
            print(f"serving on http://{host}:{port}", flush=True)
            await stop.wait()
        finally:
            await served.cleanup()
