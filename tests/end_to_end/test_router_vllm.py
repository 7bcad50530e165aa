"""The router in front of real vLLM engines, which count what they compute and what they fetch.

Opt-in, for it takes minutes and an environment of 4 GB: ``make test-vllm``.
"""

from __future__ import annotations

import math
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import rack as racks
import tiny_policy
import tiny_vllm
from rack import Served, ask, assistant, until, user, words
from tiny_vllm import Vllm

from conserve_gym.fleet import Fleet, Role

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not tiny_vllm.PYTHON.exists(), reason="needs make vllm-venv"),
]

NAMES = ("prefill", "decode")
FLEET = Fleet((Role.PREFILL, Role.DECODE), (tiny_vllm.KV_TOKENS,) * 2)
FROM_TOKENS = 200  # the policy disaggregates prompts from here on
LONG, SHORT, APPEND, ANSWER = 1000, 100, 40, 16  # letters, which are tokens

PATIENT = (  # on a machine with two cores, both of which compute
    "limits.first_token_s=300",
    "limits.next_token_s=120",
    "limits.connect_s=20",
    "health.timeout_s=60",
)


class Sources(NamedTuple):
    """Prompt tokens of an engine by where their KV came from, and what it fetched, as it says."""

    computed: float
    cached: float
    fetched: float
    fetches: float
    fetched_bytes: float
    fetching_s: float

    @classmethod
    def of(cls, url: str) -> Sources:
        """Read an engine's metrics."""
        found = racks.counters(url)

        def total(name: str, label: str = "") -> float:
            return sum(
                value
                for key, value in found.items()
                if key.partition("{")[0] == f"vllm:{name}" and label in key
            )

        by_source = "prompt_tokens_by_source_total"
        return cls(
            total(by_source, 'source="local_compute"'),
            total(by_source, 'source="local_cache_hit"'),
            total(by_source, 'source="external_kv_transfer"'),
            total("nixl_bytes_transferred_count"),
            total("nixl_bytes_transferred_sum"),
            total("nixl_xfer_time_seconds_sum"),
        )

    def since(self, before: Sources) -> Sources:
        """Return what has come since."""
        return Sources(*(now - then for now, then in zip(self, before, strict=True)))


class Turn(NamedTuple):
    """A turn's receipt, and what both engines did for it."""

    reply: racks.Reply
    prompt_tokens: int
    prefill: Sources
    decode: Sources


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Vllm]]:
    folder = tmp_path_factory.mktemp("vllm")
    script = Path(tiny_vllm.__file__)
    subprocess.run([str(tiny_vllm.PYTHON), str(script), str(folder / "model")], check=True)
    began = time.monotonic()
    started = [Vllm(folder, name, core) for core, name in enumerate(NAMES)]
    try:
        for engine in started:
            until(lambda engine=engine: well(engine), "vLLM is up", timeout=900)
        print(f"\ntwo engines up after {time.monotonic() - began:.0f} s")
        yield started
    finally:
        for engine in started:
            engine.close()


def well(engine: Vllm) -> bool:
    assert engine.process.poll() is None, engine.log.read_text()[-4000:]
    try:
        return ask(f"{engine.url}/health", timeout=30).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def served(engines: list[Vllm], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("router")
    tiny_policy.write(folder / "policy", FLEET, FROM_TOKENS)
    of_engines = ",".join(
        f"{{name:{name},url:'{engine.url}',role:{role},adapter:vllm_nixl,"
        f"kv_tokens:{tiny_vllm.KV_TOKENS}}}"
        for name, engine, role in zip(NAMES, engines, FLEET.roles, strict=True)
    )
    one = Served(folder, f"engines=[{of_engines}]", "policy=policy", "log=log", *PATIENT)
    yield one
    one.close()


def block_tokens(engine: Vllm) -> int:
    """Return the tokens of a block, the least that vLLM keeps of a prompt."""
    info = next(k for k in racks.counters(engine.url) if k.startswith("vllm:cache_config_info"))
    found = re.search(r'block_size="(\d+)"', info)
    assert found is not None
    return int(found[1])


def converse(served: Served, engines: list[Vllm], seed: int, first: int) -> list[Turn]:
    """Play three turns, one after the other, and see to what each engine did for them."""
    messages = [user(words(seed, first))]
    played = []
    for turn in range(3):
        before = [Sources.of(engine.url) for engine in engines]
        reply = served.chat(f"s{seed}", messages, ANSWER, model="tiny")
        assert reply.status == 200, reply.body
        prompt_tokens = reply.json["usage"]["prompt_tokens"]
        fetched = int(reply.headers["x-conserve-kv-transfers"])

        def since(before: list[Sources] = before) -> list[Sources]:
            both = zip(engines, before, strict=True)
            return [Sources.of(engine.url).since(then) for engine, then in both]

        def told(fetched: int = fetched, tokens: int = prompt_tokens) -> bool:
            _, decode = since()
            counted = decode.computed + decode.cached + decode.fetched
            return counted >= tokens and decode.fetches >= fetched

        until(told, "the decoder has counted the turn")
        prefill, decode = since()
        played.append(Turn(reply, prompt_tokens, prefill, decode))
        print(f"turn {turn}: {prompt_tokens} prompt tokens; prefill {prefill}; decode {decode}")
        messages += [assistant(reply.text), user(words(1000 * seed + turn, APPEND))]
    return played


def check_later_turns(played: list[Turn], block: int) -> None:
    """Check that later turns compute on their decoder what is new, and nothing elsewhere."""
    for turn, before in zip(played[1:], played, strict=False):
        known = before.prompt_tokens + ANSWER
        assert turn.reply.headers["x-conserve-decoder"] == "decode"
        assert turn.reply.headers["x-conserve-kv-transfers"] == "0"
        assert turn.prefill == Sources(0, 0, 0, 0, 0, 0)
        assert (turn.decode.fetched, turn.decode.fetched_bytes) == (0, 0)
        # The last block of what is known may not be full; it is computed again.
        assert turn.decode.computed <= turn.prompt_tokens - known + block
        assert turn.decode.computed + turn.decode.cached == turn.prompt_tokens


def test_a_disaggregated_conversation_moves_once(served: Served, engines: list[Vllm]) -> None:
    played = converse(served, engines, 1, LONG)
    first, block = played[0], block_tokens(engines[1])
    assert first.reply.headers["x-conserve-decision"] == "disaggregate"
    assert first.reply.headers["x-conserve-kv-transfers"] == "1"
    assert first.prompt_tokens >= LONG
    assert (first.prefill.computed, first.prefill.cached) == (first.prompt_tokens, 0)
    assert (first.decode.computed, first.decode.fetched) == (0, first.prompt_tokens)
    assert first.decode.fetches == 1
    blocks = math.ceil(first.prompt_tokens / block)
    assert first.decode.fetched_bytes == blocks * block * tiny_vllm.KV_BYTES_PER_TOKEN
    check_later_turns(played, block)
    assert served.metrics["conserve_kv_transfers_total"] == 1


def test_a_colocated_conversation_moves_nothing(served: Served, engines: list[Vllm]) -> None:
    played = converse(served, engines, 2, SHORT)
    first = played[0]
    assert first.reply.headers["x-conserve-decision"] == "colocate"
    assert first.prefill == Sources(0, 0, 0, 0, 0, 0)
    assert (first.decode.computed, first.decode.fetched) == (first.prompt_tokens, 0)
    check_later_turns(played, block_tokens(engines[1]))


def test_the_text_is_that_of_a_single_engine(served: Served, engines: list[Vllm]) -> None:
    """With nothing cached there: its own salt keeps the engine from finding what it knows."""
    messages = [user(words(3, LONG))]
    for turn in range(3):
        ours = served.chat("s3", messages, ANSWER, model="tiny", stream=bool(turn % 2))
        body = {
            "model": "tiny",
            "messages": messages,
            "max_tokens": ANSWER,
            "temperature": 0,
            "ignore_eos": True,
            "cache_salt": f"alone {turn}",
        }
        alone = ask(f"{engines[0].url}/v1/chat/completions", body, timeout=300)
        assert len(alone.text) == ANSWER
        assert ours.text == alone.text
        messages += [assistant(ours.text), user(words(3000 + turn, APPEND))]
