"""A policy decides for real conversations on real engines, and the engines count what it said."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import browser
import pytest
import tiny_policy

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf")),
    reason="needs xllamacpp and gguf, which the extra dev has where there are wheels",
)

import rack as racks  # noqa: E402
from rack import Rack, Served, ask, assistant, user, words  # noqa: E402

from conserve_gym.agents.runtime.replay import by_checksum, replay  # noqa: E402
from conserve_gym.agents.runtime.scheduler import Scheduler  # noqa: E402
from conserve_gym.fleet import Fleet, Role  # noqa: E402

REPLAY = racks.SERVE.with_name("replay.py")


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    built = Rack(tmp_path_factory.mktemp("rack"))
    yield built
    built.close()


@pytest.fixture(scope="module")
def shared(rack: Rack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A router for tests that look neither at its log nor at its counters."""
    with racks.router(rack, tmp_path_factory.mktemp("shared")) as one:
        yield one


@pytest.fixture
def served(rack: Rack, tmp_path: Path) -> Iterator[Served]:
    with racks.router(rack, tmp_path) as one:
        yield one


def converse(served: Served, seed: int, first: int, turns: int, stream: bool) -> list[racks.Reply]:
    """Play a conversation: a first prompt of so many letters, then 20 a turn."""
    messages = [user(words(seed, first))]
    replies = []
    for turn in range(turns):
        reply = served.chat(f"s{seed}", messages, stream=stream)
        assert reply.status == 200, reply.body
        replies.append(reply)
        messages += [assistant(reply.text), user(words(1000 * seed + turn, 20))]
    return replies


def test_engines_count_what_the_policy_decided(served: Served, rack: Rack, tmp_path: Path) -> None:
    """Eight conversations of three turns, half of them long."""
    before = rack.computed()
    lengths = [40 if seed % 2 else 300 for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        played = list(
            pool.map(lambda i: converse(served, i + 1, lengths[i], 3, bool(i % 3)), range(8))
        )
    prefill, one, two = (now - then for now, then in zip(rack.computed(), before, strict=True))
    first_prompts, new_tokens = 0, 0
    for length, replies in zip(lengths, played, strict=True):
        disaggregated = length >= racks.FROM_TOKENS
        (decoder,) = {reply.headers["x-conserve-decoder"] for reply in replies}
        assert decoder in ("one", "two")
        prefiller = "prefill" if disaggregated else decoder
        for turn, reply in enumerate(replies):
            headers = reply.headers
            assert headers["x-conserve-turn"] == str(turn)
            assert (headers["x-conserve-decision"] == "disaggregate") is disaggregated
            assert headers["x-conserve-prefiller"] == prefiller
            assert headers["x-conserve-kv-transfers"] == str(int(disaggregated and turn == 0))
            assert headers["x-conserve-policy"] == "tiny"
            assert headers["x-conserve-reason"] is None
    # From the log: what each turn was, as the engines' usage says.
    records = [json.loads(line) for line in log_lines(tmp_path)]
    moved = {r["conversation"] for r in records if r.get("event") == "kv_moved"}
    placed = {r["conversation"]: r for r in records if r.get("event") == "placed"}
    assert moved == {n for n, r in placed.items() if r["prefill_at"] != r["decode_at"]}
    assert sum(r.get("event") == "kv_moved" for r in records) == len(moved) == 4
    for r in records:
        if r.get("event") == "turn_finished":
            if r["turn"] == 0 and r["conversation"] in moved:
                first_prompts += r["input_tokens"]
                assert r["cached_tokens"] == r["input_tokens"] - 1
            elif r["turn"] > 0:
                assert r["cached_tokens"] > r["input_tokens"] - 100  # 20 letters and the template
            new_tokens += r["input_tokens"] - r["cached_tokens"]
    assert prefill == first_prompts
    assert one + two == new_tokens
    assert served.metrics["conserve_kv_transfers_total"] == 4
    assert served.metrics["conserve_kv_transfer_bytes_total"] > 4 * 300 * 1000
    assert not list(rack.slots.iterdir())


def log_lines(folder: Path) -> list[str]:
    (segment,) = (folder / "log").iterdir()
    return segment.read_text().splitlines()


@pytest.mark.parametrize("stream", [False, True])
def test_the_text_is_that_of_a_single_engine(shared: Served, rack: Rack, stream: bool) -> None:
    seed = 60 + stream
    replies = converse(shared, seed, 400, 3, stream)
    messages = [user(words(seed, 400))]
    for turn, reply in enumerate(replies):
        body = {"messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        alone = ask(f"{rack.urls[0]}/v1/chat/completions", {**body, "cache_prompt": False})
        assert reply.text == alone.text != ""
        messages += [assistant(reply.text), user(words(1000 * seed + turn, 20))]


def test_an_answer_that_is_not_streamed_is_as_the_engine_gives_it(
    shared: Served, rack: Rack
) -> None:
    options = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
    body = {"messages": [user(words(70, 30))], **options}
    ours = ask(f"{shared.url}/v1/chat/completions", body).json
    theirs = ask(f"{rack.urls[1]}/v1/chat/completions", body).json
    for answer in (ours, theirs):
        for changing in ("id", "created", "timings"):
            answer.pop(changing)
        answer["usage"].pop("prompt_tokens_details")
    assert ours == theirs
    body = {"prompt": words(71, 30), **options}
    ours = ask(f"{shared.url}/v1/completions", body)
    theirs = ask(f"{rack.urls[1]}/v1/completions", body)
    assert ours.text == theirs.text
    assert ours.json["object"] == theirs.json["object"] == "text_completion"


def test_usage_is_streamed_to_those_who_ask(shared: Served) -> None:
    messages = [user(words(80, 30))]
    silent = shared.chat("a", messages, stream=True)
    told = shared.chat("b", messages, stream=True, stream_options={"include_usage": True})
    assert not any("usage" in event for event in silent.events)
    assert told.events[-1]["usage"]["completion_tokens"] == 8
    assert silent.body.rstrip().endswith(b"data: [DONE]")


def test_logged_decisions_replay_alike(served: Served, tmp_path: Path) -> None:
    for seed in range(100, 112):
        converse(served, seed, 40 + 30 * (seed - 100), 1, stream=False)
    tiny_policy.write(tmp_path / "other", racks.FLEET, 300, name="other")
    shutil.copytree(tmp_path / "policy", tmp_path / "first")
    for file in (tmp_path / "other").iterdir():
        shutil.copy(file, tmp_path / "policy" / file.name)
    racks.until(lambda: ask(f"{served.url}/ready").json["policy"] == "other", "reload")
    for seed in range(112, 120):
        converse(served, seed, 250, 1, stream=False)
    served.close()
    policies = by_checksum(map(Scheduler.load, (tmp_path / "first", tmp_path / "other")))
    replayed = list(replay(tmp_path / "log", policies))
    assert len(replayed) == 20
    assert all(one.same for one in replayed)
    assert not any(one.online.disaggregates for one in replayed[12:])
    done = subprocess.run(
        [sys.executable, str(REPLAY), "log=log", "policies=[first,other]"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "20 decisions, 20 the same offline\n", done.stderr


def test_conversations_are_told_apart_by_what_names_them(shared: Served) -> None:
    def number(headers: dict[str, str] | None = None, **fields: str) -> str:
        messages = [user(words(120, 30))]
        reply = shared.chat(None, messages, 2, headers=headers, **fields)
        return str(reply.headers["x-conserve-conversation"])

    named = number({"x-session-id": "a"})
    assert number({"X-Session-Id": "a", "x-session-affinity": "b"}, user="c") == named
    assert number(session_id="a") == named
    assert number(prompt_cache_key="a") != named
    user_key = number(user="a")
    assert user_key != named and number(user="a") == user_key
    assert number() != number()  # alike from the first message on, and nobody says more


def test_chats_without_a_name_go_on_by_their_messages(shared: Served) -> None:
    messages = [user(words(130, 30))]
    first = shared.chat(None, messages)
    messages += [assistant(first.text), user("and")]
    second = shared.chat(None, messages)
    assert second.headers["x-conserve-conversation"] == first.headers["x-conserve-conversation"]
    assert second.headers["x-conserve-turn"] == "1"
    forked = shared.chat(None, [messages[0], assistant("otherwise"), user("and")])
    assert forked.headers["x-conserve-conversation"] != first.headers["x-conserve-conversation"]


def test_conversations_end_when_told_and_when_silent(rack: Rack, tmp_path: Path) -> None:
    with racks.router(rack, tmp_path, "limits.idle_s=1") as served:
        last = {"x-session-final": "true"}
        served.chat("told", [user(words(140, 30))], headers=last)
        served.chat("deleted", [user(words(141, 30))])
        served.chat("silent", [user(words(142, 30))])
        named = {"x-session-id": "deleted"}
        assert ask(f"{served.url}/v1/conversation", None, named, "DELETE").status == 204
        assert ask(f"{served.url}/v1/conversation", None, named, "DELETE").status == 404
        assert served.metrics["conserve_conversations"] == 1
        racks.until(lambda: served.metrics["conserve_conversations"] == 0, "idle timeout")
        metrics = served.metrics
        assert metrics['conserve_conversations_ended_total{reason="client"}'] == 2
        assert metrics['conserve_conversations_ended_total{reason="idle"}'] == 1
        assert metrics["conserve_ttfet_seconds_count"] == 3
    events = [json.loads(line) for line in log_lines(tmp_path)]
    assert sum(one.get("event") == "conversation_ended" for one in events) == 3


def test_models_health_and_metrics(served: Served) -> None:
    served.chat("a", [user(words(150, 300))])
    assert ask(f"{served.url}/v1/models").json["object"] == "list"
    assert ask(f"{served.url}/health").status == 200
    ready = ask(f"{served.url}/ready")
    assert (ready.status, ready.json["policy"], ready.json["reason"]) == (200, "tiny", "")
    metrics = served.metrics
    assert metrics['conserve_decisions_total{kind="disaggregate",reason="policy"}'] == 1
    assert metrics['conserve_engine_up{engine="two"}'] == 1
    assert metrics["conserve_ledger_events"] == 6
    assert metrics["conserve_ttft_seconds_count"] == 1
    assert metrics["conserve_tbt_seconds_count"] >= 7
    assert metrics["conserve_decision_seconds_count"] == 1


@browser.needed
def test_the_page_shows_engines_and_decisions(served: Served, tmp_path: Path) -> None:
    served.chat("a", [user(words(160, 300))])
    shown = browser.dom(f"{served.url}/", tmp_path)
    assert shown.said["summary"] == "policy tiny"
    assert [row["engine"] for row in shown.rows["engines"]] == [
        f"{name} {role}" for name, role in zip(racks.NAMES, racks.ROLES, strict=True)
    ]
    (decision,) = shown.rows["latest"]
    assert decision["route"] == "prefill at prefill → one"


# --- who may do what ---


def test_a_key_is_asked_for(rack: Rack, tmp_path: Path) -> None:
    with racks.router(rack, tmp_path, "api_key=secret") as served:
        messages = [user(words(170, 30))]
        for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "Basic secret"}):
            refused = served.chat("a", messages, headers=headers)
            assert refused.status == 401
            assert refused.json["error"]["code"] == "invalid_api_key"
        assert served.chat("a", messages, headers={"Authorization": "Bearer secret"}).status == 200
        assert ask(f"{served.url}/v1/models").status == 401
        assert ask(f"{served.url}/health").status == 200


def test_sizes_are_limited(rack: Rack, tmp_path: Path) -> None:
    limits = ("limits.body_bytes=2000", "limits.header_bytes=1000")
    with racks.router(rack, tmp_path, *limits) as served:
        assert served.chat("a", [user(words(180, 30))]).status == 200
        large = served.chat("a", [user(words(180, 3000))])
        assert (large.status, large.json["error"]["code"]) == (413, "http_413")
        assert served.chat("a" * 2000, [user(words(180, 30))]).status == 400


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", b"{", 400),
        ("/v1/chat/completions", b"[]", 400),
        ("/v1/chat/completions", b"[" * 100_000, 400),
        ("/v1/chat/completions", b'{"prompt": "a"}', 400),
        ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": 3}]}', 400),
        ("/v1/completions", b'{"messages": []}', 400),
        ("/v1/elsewhere", b"{}", 404),
        ("/v1/models", b"{}", 405),
    ],
)
def test_wrong_requests_get_an_error_in_openais_form(
    shared: Served, path: str, body: bytes, status: int
) -> None:
    before = shared.metrics["conserve_conversations"]
    reply = ask(shared.url + path, body)
    assert reply.status == status
    assert reply.json["error"]["message"]
    assert shared.metrics["conserve_conversations"] == before


def test_clients_choose_neither_slots_nor_hosts(shared: Served, rack: Rack) -> None:
    asked = {
        "id_slot": 999,
        "kv_transfer_params": {"remote_host": "example.org"},
        "session_id": "../../etc/passwd",
    }
    reply = shared.chat(None, [user(words(190, 300))], **asked)
    assert reply.status == 200
    assert reply.headers["x-conserve-kv-transfers"] == "1"
    assert not list(rack.slots.iterdir())


def test_it_listens_on_this_machine_alone(shared: Served) -> None:
    assert shared.url.startswith("http://127.0.0.1:")


def test_a_long_prefill_stalls_a_decode_where_it_is_colocated(rack: Rack, tmp_path: Path) -> None:
    """The longest gap between tokens, with 2,000 tokens prefilled meanwhile: here or elsewhere."""
    one = rack.engines().replace("role:decode", "role:prefill", 1)  # only one engine decodes
    stalls = {}
    for name, threshold in (("colocated", float("inf")), ("disaggregated", 1000.0)):
        folder = tmp_path / name
        folder.mkdir()
        roles = (Role.PREFILL, Role.PREFILL, Role.DECODE)
        fleet = Fleet(roles, racks.FLEET.kv_capacity_tokens)
        tiny_policy.write(folder / "policy", fleet, threshold)
        gaps = []
        with racks.router(rack, folder, one) as served:
            for repeat in range(3):
                seed = 200 + 10 * repeat + len(name)
                stream = racks.Stream(served, f"s{seed}", words(seed, 40), 600)
                with ThreadPoolExecutor(1) as pool:
                    events = stream.events()
                    for _ in range(50):
                        next(events)
                    other = pool.submit(served.chat, f"t{seed}", [user(words(seed + 5, 2000))], 2)
                    times = [time.monotonic() for _ in events]
                    receipt = other.result().headers
                assert receipt["x-conserve-kv-transfers"] == str(int(name == "disaggregated"))
                gaps.append(max(b - a for a, b in pairwise(times)))
        stalls[name] = sorted(gaps)[1]
    assert stalls["colocated"] >= 5.0 * stalls["disaggregated"], stalls
