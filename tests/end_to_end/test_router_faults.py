"""Engines, clients, files and the router itself fail: what can still be served is served."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf")),
    reason="needs xllamacpp and gguf, which the extra dev has where there are wheels",
)

import rack as racks  # noqa: E402
from rack import Rack, Served, Stream, assistant, until, user, words  # noqa: E402

from conserve_gym.agents.runtime.replay import by_checksum, replay  # noqa: E402
from conserve_gym.agents.runtime.scheduler import Scheduler  # noqa: E402

PREFILL, ONE, TWO = range(3)
LONG = 300  # letters: the tests' policy disaggregates such a prompt


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    built = Rack(tmp_path_factory.mktemp("rack"))
    yield built
    built.close()


@pytest.fixture
def rack(standing: Rack) -> Iterator[Rack]:
    """Three engines that are well, before and after."""
    yield standing
    standing.repair()
    for left in standing.slots.iterdir():
        left.unlink()


@pytest.fixture
def served(rack: Rack, tmp_path: Path) -> Iterator[Served]:
    with racks.router(rack, tmp_path) as one:
        yield one


def settled(served: Served) -> None:
    """Check that no turn is under way any more, in the ledger."""
    until(
        lambda: not any(engine["turns_in_flight"] for engine in served.state["engines"]),
        "no turn in flight",
    )


def same_decisions(folder: Path) -> int:
    """Replay the log; returns the number of decisions."""
    policies = by_checksum([Scheduler.load(folder / "policy")])
    replayed = list(replay(folder / "log", policies))
    assert all(one.same for one in replayed)
    return len(replayed)


def test_a_decoder_killed_in_mid_stream(served: Served, rack: Rack, tmp_path: Path) -> None:
    stream = Stream(served, "a", words(1, LONG), 3000)
    events = stream.events()
    said = ""
    for _ in range(20):
        said += next(events)["choices"][0]["delta"].get("content") or ""
    assert stream.response is not None
    decoder = racks.NAMES.index(stream.response.headers["x-conserve-decoder"])
    rack.kill(decoder)
    last = list(events)[-1]
    assert last["error"]["code"] == "engine_failed"
    stream.close()
    until(lambda: not served.up[racks.NAMES[decoder]], "the decoder is down")
    # The conversation goes on where something still decodes.
    again = served.chat("a", [user(words(1, LONG)), assistant(said), user("go on")])
    assert again.status == 200
    assert again.headers["x-conserve-decoder"] == racks.NAMES[3 - decoder]
    settled(served)
    rack.start(decoder)
    until(lambda: served.up[racks.NAMES[decoder]], "the decoder is back")
    served.close()
    assert same_decisions(tmp_path) == 2


def test_a_decoder_killed_before_its_first_token(served: Served, rack: Rack) -> None:
    """Nobody notices: another decoder answers, whether whole or streamed."""
    first = served.chat("a", [user(words(2, LONG))])
    decoder = racks.NAMES.index(first.headers["x-conserve-decoder"])
    with ThreadPoolExecutor(2) as pool:
        rack.stop(decoder)
        waiting = [
            pool.submit(served.chat, "a", [user(words(2, LONG)), user("more")], 8, stream=stream)
            for stream in (False, True)
        ]
        time.sleep(0.1)
        rack.kill(decoder)
        replies = [one.result() for one in waiting]
    for reply in replies:
        assert reply.status == 200
        assert reply.headers["x-conserve-decoder"] == racks.NAMES[3 - decoder]
        assert len(reply.text) >= 8
    settled(served)


def test_the_prefill_engine_killed(served: Served, rack: Rack, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        rack.stop(PREFILL)
        waiting = pool.submit(served.chat, "a", [user(words(3, LONG))])
        time.sleep(0.1)
        rack.kill(PREFILL)
        reply = waiting.result()
    assert reply.status == 200
    assert reply.headers["x-conserve-kv-transfers"] == "0"
    assert "prefill failed" in reply.headers["x-conserve-reason"]
    until(lambda: not served.up["prefill"], "the prefill engine is down")
    reply = served.chat("b", [user(words(4, LONG))])
    assert reply.headers["x-conserve-decision"] == "colocate"
    assert reply.headers["x-conserve-reason"] == "engine 0 is down"
    rack.start(PREFILL)
    until(lambda: served.up["prefill"], "the prefill engine is back")
    assert served.chat("c", [user(words(5, LONG))]).headers["x-conserve-kv-transfers"] == "1"
    settled(served)
    served.close()
    assert same_decisions(tmp_path) == 3


@pytest.mark.parametrize("damage", ["corrupt", "missing", "another"])
def test_a_slot_file_that_is_not_right(served: Served, rack: Rack, damage: str) -> None:
    """Whoever spoils every file as it appears makes decoders compute, and clients wait no less."""
    stop = threading.Event()

    def spoil() -> None:
        while not stop.is_set():
            for path in rack.slots.glob("conserve-*.bin"):
                try:
                    if damage == "missing":
                        path.unlink()
                    elif path.stat().st_size != 1000:
                        path.write_bytes(bytes(1000))
                except FileNotFoundError:
                    pass

    if damage == "another":
        (rack.slots / "conserve-left-by-a-router-that-was-killed.bin").write_bytes(b"x")
        assert served.chat("a", [user(words(6, LONG))]).headers["x-conserve-kv-transfers"] == "1"
        served.close()
        with racks.router(rack, served.folder):
            assert not list(rack.slots.iterdir())
        return
    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        replies: list[racks.Reply] = []
        failed: list[racks.Reply] = []
        while len(replies) < 6 or not failed:  # on a busy machine the file may be read first
            assert len(replies) < 40
            i = len(replies)
            replies.append(served.chat(f"{damage}{i}", [user(words(7 + i, LONG))]))
            if "transfer failed" in (replies[-1].headers["x-conserve-reason"] or ""):
                failed.append(replies[-1])
    finally:
        stop.set()
        thread.join()
    assert all(reply.status == 200 and len(reply.text) == 8 for reply in replies)
    assert all(reply.headers["x-conserve-kv-transfers"] == "0" for reply in failed)
    assert served.metrics['conserve_handover_failures_total{stage="transfer"}'] == len(failed)
    assert not list(rack.slots.iterdir())
    settled(served)


def test_an_engine_that_stands_still_and_comes_back(
    served: Served, rack: Rack, tmp_path: Path
) -> None:
    """It accepts connections, answers nothing for a while, and then goes on."""
    first = served.chat("a", [user(words(20, LONG))])
    messages = [user(words(20, LONG)), assistant(first.text), user("and")]
    decoder = racks.NAMES.index(first.headers["x-conserve-decoder"])
    rack.stop(decoder)
    began = time.monotonic()
    second = served.chat("a", messages)
    assert time.monotonic() - began < 6.0
    assert second.headers["x-conserve-decoder"] == racks.NAMES[3 - decoder]
    rack.go_on(decoder)
    until(lambda: served.up[racks.NAMES[decoder]], "the engine is back")
    third = served.chat("a", [*messages, assistant(second.text), user("or")])
    assert third.headers["x-conserve-decoder"] == racks.NAMES[3 - decoder]
    assert (third.headers["x-conserve-turn"], third.status) == ("1", 200)
    used = {
        served.chat(f"n{i}", [user(words(21 + i, 180))]).headers["x-conserve-decoder"]
        for i in range(4)
    }
    assert used == {"one", "two"}
    settled(served)
    served.close()
    assert same_decisions(tmp_path) == 6


AS_CONFIGURED = (
    "health.period_s=1",
    "health.timeout_s=3",
    "health.failures=3",
    "health.pause_s=10",
    "limits.connect_s=3",
)


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize(
    ("away_s", "health"),
    [
        pytest.param(2.5, (), id="seconds"),  # beside a pause of one
        pytest.param(65.0, AS_CONFIGURED, id="a minute", marks=pytest.mark.slow),
    ],
)
def test_an_engine_that_is_away_for_longer_than_any_pause(
    rack: Rack, tmp_path: Path, how: str, away_s: float, health: tuple[str, ...]
) -> None:
    """It serves again: conversations that begin, and those that had been there."""
    with racks.router(rack, tmp_path, *health) as served:
        first = served.chat("a", [user(words(400, LONG))])
        messages = [user(words(400, LONG)), assistant(first.text), user("and")]
        name = first.headers["x-conserve-decoder"]
        decoder = racks.NAMES.index(name)
        other = racks.NAMES[3 - decoder]
        began = time.monotonic()
        (rack.kill if how == "killed" else rack.stop)(decoder)
        second = served.chat("a", messages)
        assert second.headers["x-conserve-decoder"] == other
        assert not served.up[name]
        asked = 0
        while time.monotonic() < began + away_s:
            asked += 1
            reply = served.chat(f"away{asked}", [user(words(400 + asked, 40))])
            assert (reply.status, reply.headers["x-conserve-decoder"]) == (200, other)
            time.sleep(away_s / 10)
        assert asked > 1 and not served.up[name]
        (rack.start if how == "killed" else rack.go_on)(decoder)
        until(lambda: served.up[name], "the engine is back")
        fresh = served.chat("fresh", [user(words(450, LONG))])
        assert fresh.headers["x-conserve-decoder"] == name  # most of its KV is free
        assert fresh.headers["x-conserve-kv-transfers"] == "1"
        served.chat("a", messages, headers={"x-session-final": "true"})
        (rack.kill if how == "killed" else rack.stop)(3 - decoder)
        again = served.chat("b", [*messages, assistant(second.text), user("or")])
        assert (again.status, again.headers["x-conserve-decoder"]) == (200, name)
        settled(served)


class Silent(BaseHTTPRequestHandler):
    """An engine that says that it is well, and answers nothing else."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b'{"data": []}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        time.sleep(30)

    def log_message(self, *arguments: object) -> None:
        pass


def test_an_engine_that_accepts_and_never_answers(rack: Rack, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    silent = f"http://127.0.0.1:{server.server_port}"
    engines = "engines=[{}]".format(
        ",".join(
            f"{{name:{name},url:'{url}',role:decode,adapter:openai,kv_tokens:{kv}}}"
            for name, url, kv in (("silent", silent, 90_000), ("well", rack.urls[ONE], 30_000))
        )
    )
    served = Served(tmp_path, engines, "limits.first_token_s=0.7", "health.pause_s=20")
    try:
        for session in ("a", "b"):
            for stream in (False, True):
                reply = served.chat(session, [user(words(30, 40))], stream=stream)
                assert reply.status == 200
                assert reply.headers["x-conserve-decoder"] == "well"
        assert not served.up["silent"]
        assert served.metrics["conserve_retries_total"] == 1
        rack.stop(ONE)
        until(lambda: racks.ask(f"{served.url}/ready").status == 503, "not ready")
        refused = served.chat("c", [user(words(31, 40))])
        assert (refused.status, refused.json["error"]["code"]) == (503, "no_engine")
        assert refused.headers["Retry-After"]
    finally:
        served.close()
        server.shutdown()


def test_a_policy_file_replaced_by_garbage(served: Served, tmp_path: Path) -> None:
    weights = tmp_path / "policy" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"garbage")
    refused = 'conserve_policy_reloads_total{outcome="refused",policy="acting"}'
    until(lambda: served.metrics.get(refused), "the policy is refused")
    reply = served.chat("a", [user(words(40, LONG))])
    assert reply.headers["x-conserve-decision"] == "disaggregate"
    assert reply.headers["x-conserve-reason"] is None
    assert "weights.safetensors" in served.log.read_text()
    weights.write_bytes(whole)
    loaded = 'conserve_policy_reloads_total{outcome="loaded",policy="acting"}'
    until(lambda: served.metrics.get(loaded), "the policy is read again")


def test_a_client_that_disconnects(served: Served, rack: Rack) -> None:
    """Its turn stops on the engine, and its slot is free again."""
    for i in range(12):  # more than an engine has slots
        stream = Stream(served, f"s{i}", words(50 + i, LONG if i % 2 else 40), 3000)
        if i % 3:
            next(stream.events())
        else:
            time.sleep(0.02)
        stream.close()
    settled(served)
    for url in rack.urls:
        until(
            lambda url=url: racks.counters(url)["llamacpp:requests_processing"] == 0,
            "the engine is idle",
        )
    assert served.metrics["conserve_conversations"] == 0
    until(lambda: not list(rack.slots.iterdir()), "no slot file")
    assert served.chat("a", [user(words(70, LONG))]).headers["x-conserve-kv-transfers"] == "1"


@pytest.mark.slow
def test_a_thousand_conversations_opened_and_abandoned(rack: Rack, tmp_path: Path) -> None:
    with racks.router(rack, tmp_path, "limits.idle_s=3") as served:

        def abandon(i: int) -> int:
            return served.chat(f"s{i}", [user(words(100 + i, 20))], 1).status

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(abandon, range(200))) == {200}
            files, memory = served.open_files, served.memory_mib
            assert set(pool.map(abandon, range(200, 1000))) == {200}
        until(lambda: served.metrics["conserve_conversations"] == 0, "all are given up")
        assert served.memory_mib < memory + 10
        assert served.open_files <= files + 2
        metrics = served.metrics
        assert metrics['conserve_conversations_ended_total{reason="idle"}'] == 1000
        assert all(engine["kv_known"] == 0 for engine in served.state["engines"])
        assert not list(rack.slots.iterdir())


def test_the_router_killed_and_started_again(rack: Rack, tmp_path: Path) -> None:
    messages = {i: [user(words(80 + i, LONG if i % 2 else 40))] for i in range(6)}
    decoders = {}
    with racks.router(rack, tmp_path) as first:
        for i, one in messages.items():
            reply = first.chat(f"s{i}" if i else None, one)  # the first is known by its messages
            decoders[i] = reply.headers["x-conserve-decoder"]
            one += [assistant(reply.text), user("and then")]
        stream = Stream(first, "broken off", words(90, 40), 3000)
        next(stream.events())
        time.sleep(0.2)  # the log's thread writes
        first.kill()
        stream.close()
    with racks.router(rack, tmp_path) as second:
        assert second.metrics["conserve_conversations"] == 7
        before = rack.computed()
        for i, one in messages.items():
            reply = second.chat(f"s{i}" if i else None, one)
            assert reply.status == 200
            assert reply.headers["x-conserve-turn"] == "1"
            assert reply.headers["x-conserve-decoder"] == decoders[i]
        computed = [now - then for now, then in zip(rack.computed(), before, strict=True)]
        assert computed[PREFILL] == 0
        assert sum(computed) < 6 * 100  # new letters and templates: every slot was found again
        again = second.chat("broken off", [user(words(90, 40))])
        assert again.status == 200
        settled(second)
    assert same_decisions(tmp_path) >= 7


def test_a_log_of_other_engines_is_left_alone(rack: Rack, tmp_path: Path) -> None:
    with racks.router(rack, tmp_path) as first:
        first.chat("a", [user(words(95, 40))])
    two = rack.engines().replace("kv_tokens:32768", "kv_tokens:16384")
    with racks.router(rack, tmp_path, two, "policy=null") as second:
        assert second.metrics["conserve_conversations"] == 0
        assert second.chat("a", [user(words(96, 40))]).headers["x-conserve-turn"] == "0"
        assert "beginning anew" in second.log.read_text()


def test_conversations_wait_at_the_door_for_room(rack: Rack, tmp_path: Path) -> None:
    """As the policy's deployment says; one that has waited for too long is placed all the same."""
    full = rack.engines().replace("kv_tokens:32768", "kv_tokens:500")
    with racks.router(rack, tmp_path, full, "policy=null", "limits.door_s=2") as served:
        for session in ("a", "b"):
            assert served.chat(session, [user(words(97, 400))]).status == 200
        with ThreadPoolExecutor(1) as pool:
            began = time.monotonic()
            waiting = pool.submit(served.chat, "c", [user(words(98, 400))])
            until(lambda: served.metrics["conserve_at_door"] == 1, "one waits")
            racks.ask(f"{served.url}/v1/conversation", None, {"x-session-id": "a"}, "DELETE")
            assert waiting.result().status == 200
            assert time.monotonic() - began < 1.9
        began = time.monotonic()
        assert served.chat("d", [user(words(99, 400))]).status == 200
        assert time.monotonic() - began > 1.9
