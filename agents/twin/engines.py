"""The engines of a twin: started for it, or running already."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from conserve_gym.agents.twin import tiny_llama
from conserve_gym.agents.twin.llama_engine import LlamaEngine
from conserve_gym.agents.twin.spec import RunningEngine, StartedEngines, TwinSpec
from conserve_gym.envs.calibration.derive import Model
from conserve_gym.envs.configuration import ConfigurationError

_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Engines:
    """Engines that answer.

    Attributes:
        each: How to speak to each of them.
        slot_folder: Where llama.cpp's slots are saved.
        processes: Identifiers of those that were started.
        layout: Where they run, in words.
        speaks_letters: Whether every letter is a token.
    """

    each: tuple[RunningEngine, ...]
    slot_folder: Path | None
    processes: tuple[int, ...]
    layout: str
    speaks_letters: bool


@contextmanager
def running(spec: TwinSpec, model: Model) -> Iterator[Engines]:
    """Start what is to be started, and stop it in the end.

    Raises:
        ConfigurationError: llama.cpp or what writes models is not installed.
        LlamaEngineError: An engine does not start.
    """
    if not isinstance(spec.engines, StartedEngines):
        says = f"{len(spec.engines)} engines that were running"
        yield Engines(spec.engines, spec.slot_folder, (), says, speaks_letters=False)
        return
    try:
        import gguf  # noqa: F401
        import xllamacpp  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f"{error}: pip install 'conserve-gym[twin]'") from None
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        # Slots in memory, where there is such a place: a disk's speed is not under study.
        beside = _MEMORY if _MEMORY.is_dir() else None
        folder = Path(stack.enter_context(TemporaryDirectory("-conserve-twin", dir=beside)))
        slots = spec.slot_folder or folder / "slots"
        slots.mkdir(exist_ok=True)
        file = folder / "model.gguf"
        tiny_llama.write(file, model, spec.engines.context_tokens)
        each, processes = [], []
        for i, role in enumerate(spec.engines.roles):
            engine = LlamaEngine(
                str(file),
                spec.token_budget,
                spec.max_sequences,
                spec.engines.context_tokens,
                str(slots),
                core=cores[i % len(cores)],
            )
            process, url = stack.enter_context(engine.served(folder / "server.log"))
            processes.append(process.pid)
            each.append(RunningEngine(f"{role}{i}", url, role, "llamacpp", engine.kv_tokens))
        layout = _layout(len(each), len(cores))
        yield Engines(tuple(each), slots, tuple(processes), layout, speaks_letters=True)


def _layout(engines: int, cores: int) -> str:
    if engines <= cores:
        return f"{engines} engines, each with one thread on a core of its own of {cores}"
    return f"{engines} engines with one thread each on {cores} cores, which some of them share"
