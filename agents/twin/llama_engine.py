"""A llama.cpp server in a process of its own, on a free port of this machine, with one thread."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from json import dumps, loads
from pathlib import Path
from typing import Any

from conserve_gym.errors import ConServeGymError


class LlamaEngineError(ConServeGymError):
    """An engine that does not start; the message has the end of its log."""


@dataclass(frozen=True)
class LlamaEngine:
    """How an engine is run.

    Attributes:
        model: GGUF file.
        token_budget: Tokens that a step carries (``n_batch``).
        max_sequences: Slots.
        context_tokens: Tokens that a slot holds.
        slots: Folder for saved slots; None for none.
        port: Port to listen on; 0 takes a free one.
        core: Core that it is pinned to; None for any.
    """

    model: str
    token_budget: int
    max_sequences: int
    context_tokens: int
    slots: str | None = None
    port: int = 0
    core: int | None = None

    @property
    def kv_tokens(self) -> int:
        """Size of the KV pool."""
        return self.context_tokens * self.max_sequences

    def start(self, log: Path) -> tuple[subprocess.Popen[str], str]:
        """Serve in a process of its own; returns it with its address.

        Raises:
            LlamaEngineError: It does not start.
        """
        with log.open("a") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, dumps(asdict(self))],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address.startswith("http"):
            process.kill()
            process.wait()
            raise LlamaEngineError(f"llama.cpp did not start: {log.read_text()[-500:]}")
        return process, address

    @contextmanager
    def served(self, log: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """Serve in a process of its own; gives it with its address."""
        process, address = self.start(log)
        try:
            yield process, address
        finally:
            process.kill()
            process.wait()


def serve(engine: LlamaEngine) -> None:
    """Serve until stopped: a step carries one batch of tokens."""
    if engine.core is not None:
        os.sched_setaffinity(0, {engine.core})
    import xllamacpp

    parameters: Any = xllamacpp.CommonParams()
    parameters.model.path = engine.model
    parameters.port = engine.port
    if engine.slots is not None:
        parameters.slot_save_path = f"{engine.slots}/"
        parameters.endpoint_slots = parameters.endpoint_metrics = True
    parameters.n_parallel = engine.max_sequences
    parameters.n_ctx = engine.kv_tokens
    parameters.n_batch = parameters.n_ubatch = engine.token_budget
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_ram_mib = 0  # no copies of idle slots, which would take time between steps
    parameters.fit_params = False
    parameters.verbosity = 1
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    serve(LlamaEngine(**loads(sys.argv[1])))
