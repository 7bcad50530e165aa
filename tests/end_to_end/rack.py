"""A prefill engine and two decoders of llama.cpp, and routers in front of them, all processes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tiny_policy

from conserve_gym.agents.fidelity_check import public
from conserve_gym.agents.twin import tiny_llama
from conserve_gym.agents.twin.llama_engine import LlamaEngine
from conserve_gym.envs.calibration.derive import Model
from conserve_gym.fleet import Fleet, Role

SERVE = Path(__file__).parents[2] / "scripts" / "serve.py"
NAMES = ("prefill", "one", "two")
ROLES = (Role.PREFILL, Role.DECODE, Role.DECODE)
TOKEN_BUDGET, MAX_SEQUENCES, CONTEXT = 512, 8, 4096
KV_TOKENS = CONTEXT * MAX_SEQUENCES
FLEET = Fleet(ROLES, (KV_TOKENS,) * 3)
FROM_TOKENS = 200  # the tests' policy disaggregates prompts from here on

QUICK = (
    "tokens_per_character=1.0",  # of this vocabulary
    "reload_s=0.2",
    "limits.first_token_s=8",
    "limits.next_token_s=2",
    "limits.connect_s=1",
    "health.period_s=0.2",
    "health.timeout_s=0.5",
    "health.failures=2",
    "health.pause_s=1",
)


class Reply:
    """What came back over HTTP."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON of every event of a stream."""
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]
        return [json.loads(line) for line in lines if line != b"[DONE]"]

    @property
    def text(self) -> str:
        """The text of an answer, streamed or whole."""
        parts = (
            self.events if self.headers.get_content_type() == "text/event-stream" else [self.json]
        )
        said = ""
        for part in parts:
            for choice in part.get("choices", ()):
                message = choice.get("delta") or choice.get("message") or {}
                said += choice.get("text") or message.get("content") or ""
        return said


def ask(
    url: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
    timeout: float = 60.0,
) -> Reply:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    all_headers = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data, all_headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return Reply(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.headers, error.read())


def until(condition: Callable[[], Any], what: str, timeout: float = 60.0) -> Any:
    """Wait for something to become true; returns it."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.05)
    return found


def tiny_engine(folder: Path, slots: Path | None = None, port: int = 0) -> LlamaEngine:
    """An engine with the tiny model, which is written if it is not there."""
    model = folder / "tiny.gguf"
    if not model.exists():
        tiny_llama.write(model, public("model", "tiny_llama", Model), CONTEXT)
    saved = str(slots) if slots else None
    return LlamaEngine(str(model), TOKEN_BUDGET, MAX_SEQUENCES, CONTEXT, saved, port)


def counters(url: str) -> dict[str, float]:
    """Return Prometheus metrics by name, labels included."""
    text = ask(f"{url}/metrics").body.decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
    return {name: float(value) for name, value in pairs}


class Rack:
    """Three engines with one folder for slots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slots = folder / "slots"
        self.slots.mkdir()
        started = [self._start(0) for _ in NAMES]
        self.processes = [process for process, _ in started]
        self.urls = [url for _, url in started]

    def _start(self, port: int) -> tuple[subprocess.Popen[str], str]:
        return tiny_engine(self.folder, self.slots, port).start(self.folder / "server.log")

    def kill(self, engine: int) -> None:
        self.processes[engine].kill()
        self.processes[engine].wait()

    def start(self, engine: int) -> None:
        """Start a killed engine again at its address."""
        port = int(self.urls[engine].rsplit(":", 1)[1])
        self.processes[engine], _ = self._start(port)

    def stop(self, engine: int) -> None:
        """Let an engine accept connections and never answer."""
        self.processes[engine].send_signal(signal.SIGSTOP)

    def go_on(self, engine: int) -> None:
        self.processes[engine].send_signal(signal.SIGCONT)

    def repair(self) -> None:
        """Bring every engine back."""
        for engine, process in enumerate(self.processes):
            if process.poll() is not None:
                self.start(engine)
            else:
                self.go_on(engine)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def computed(self) -> list[float]:
        """Prompt tokens that each engine has computed so far, as it says."""
        return [counters(url)["llamacpp:prompt_tokens_total"] for url in self.urls]

    def engines(self) -> str:
        """The engines as the router's configuration has them."""
        return "engines=[{}]".format(
            ",".join(
                f"{{name:{name},url:'{url}',role:{role},adapter:llamacpp,kv_tokens:{KV_TOKENS}}}"
                for name, url, role in zip(NAMES, self.urls, ROLES, strict=True)
            )
        )


class Served:
    """A router in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.log = folder / "router.log"
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(SERVE), *QUICK, "port=0", *arguments],
                cwd=folder,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            self.url = until(self._address, "the router's address").group(1)
        except BaseException:
            self.kill()
            raise

    def _address(self) -> re.Match[str] | None:
        assert self.process.poll() is None, self.log.read_text()
        return re.search(r"serving on (http://\S+)\n", self.log.read_text())

    def chat(
        self,
        session: str | None,
        messages: list[dict[str, str]],
        tokens: int = 8,
        *,
        stream: bool = False,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> Reply:
        body = {
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": stream,
            **options,
        }
        named = {"x-session-id": session} if session else {}
        return ask(f"{self.url}/v1/chat/completions", body, {**named, **(headers or {})})

    @property
    def metrics(self) -> dict[str, float]:
        return counters(self.url)

    @property
    def up(self) -> dict[str, bool]:
        return dict(ask(f"{self.url}/ready").json["engines"])

    @property
    def state(self) -> Any:
        return ask(f"{self.url}/state").json

    @property
    def memory_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    @property
    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Ask it to stop; it does so in good order."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)


class Stream:
    """A streamed answer, read event by event."""

    def __init__(self, served: Served, session: str, letters: str, tokens: int) -> None:
        address = urlsplit(served.url)
        self.connection = http.client.HTTPConnection(
            str(address.hostname), address.port, timeout=30
        )
        body = {
            "messages": [user(letters)],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        headers = {"x-session-id": session, "Content-Type": "application/json"}
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        self.response: http.client.HTTPResponse | None = None

    def events(self) -> Iterator[dict[str, Any]]:
        self.response = self.response or self.connection.getresponse()
        while line := self.response.readline():
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])

    def close(self) -> None:
        self.connection.close()


@contextmanager
def router(rack: Rack, folder: Path, *arguments: str) -> Iterator[Served]:
    """Serve with the tests' policy and a log."""
    policy = folder / "policy"
    if not policy.exists():
        tiny_policy.write(policy, FLEET, FROM_TOKENS)
    served = Served(
        folder,
        rack.engines(),
        f"slot_folder={rack.slots}",
        "policy=policy",
        "log=log",
        *arguments,
    )
    try:
        yield served
    finally:
        served.close()


def words(seed: int, letters: int) -> str:
    """A text of so many letters that no other seed begins with."""
    import numpy as np

    drawn = np.random.default_rng(seed).integers(0, 26, letters)
    return "".join(chr(97 + letter) for letter in drawn)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
