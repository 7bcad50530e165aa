"""The artifact's clock: runs that are stitched, against whole runs in which nothing waits."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from settings import WORKLOAD, arriving, drawn, lone, spec, tiny

from conserve_gym.agents.evaluation import measured
from conserve_gym.agents.reproduction import artifact_clock, recording
from conserve_gym.agents.reproduction.arms import ARMS, Run
from conserve_gym.agents.reproduction.cells import Cell, paper_scenario, play
from conserve_gym.agents.reproduction.detours import OVERCOUNTED_TOKENS, VirtualPrefiller, detour_s
from conserve_gym.agents.reproduction.polling_door import PollingDoor, ProxyDoor
from conserve_gym.agents.reproduction.recording import prefills, with_joined_texts
from conserve_gym.agents.reproduction.spec import CAPS
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.envs.workloads.conversation import Conversation
from conserve_gym.ledger import FirstToken, KvMoved, Placed, Prefilled
from conserve_gym.metrics import RecordReader

STITCHED = [name for name, arm in ARMS.items() if arm.run in (Run.DECODERS, Run.FREE_PREFILL)]
ARTIFACT = [name for name, arm in ARMS.items() if arm.run]
LONE = lone(drawn().turns[0])
CLUSTER = tiny().cluster


def alone(name: str, share: float = 0.0) -> dict[str, float]:
    """Return an arm's metrics for one conversation."""
    return artifact_clock.play(CLUSTER, ARMS[name], LONE, share)


def standalone_s() -> tuple[float, float, float]:
    return StandaloneEngine.of(CLUSTER).latencies(with_joined_texts(LONE.turns[0], 1))


def whole(name: str, first_joined: int) -> Cluster:
    """Return a whole cluster that has played the conversation, with an arm's policy."""
    policy = ARMS[name].policy()
    turns = with_joined_texts(LONE.turns[0], first_joined)
    cluster = Cluster(CLUSTER, policy.deployment, [Conversation(0.0, turns)])
    measured(cluster, policy, 0)
    return cluster


@pytest.mark.parametrize("name", ARTIFACT)
def test_a_lone_conversation_is_as_fast_as_in_a_whole_run(name: str) -> None:
    """Nothing waits, so stitching may change nothing but what runs beside it."""
    found, expected = alone(name), standalone_s()
    cluster = whole(name, 2 if name in STITCHED else 1)
    (record,) = RecordReader().read(cluster.ledger)
    latencies = (record.first_token_s, record.last_tbt_s, record.ended_s)
    for metric, ours, standalone in zip(
        ("ttfet_p95", "tbt_mean_p95", "e2e_p95"), latencies, expected, strict=True
    ):
        assert found[metric] == pytest.approx(ours / standalone, rel=1e-6), metric
    assert found["tbt_slo_violation_pct"] == found["ttfet_slo_violation_pct"] == 0.0
    if ARMS[name].run is not Run.PROXIED:
        assert 0.9 < found["ttfet_p95"] < 1.1


def test_a_lone_collocated_conversation_is_the_standalone_one() -> None:
    found = alone("colocate_oracle")
    for metric in ("ttfet_p95", "tbt_mean_p95", "e2e_p95"):
        assert found[metric] == pytest.approx(1.0, rel=1e-9)


def test_tokens_per_joule_of_a_lone_conversation() -> None:
    """A replay begins when the prompt has arrived: before that nobody's idleness is counted."""
    turns = LONE.turns[0]
    tokens = sum(turn.input_tokens + turn.output_tokens for turn in turns)
    recorded = prefills(CLUSTER, LONE)
    cluster = whole("conserve", 2)
    joules = sum(sum(engine.energy_j().values()) for engine in cluster.engines)
    joules -= 4 * recorded.idle_w * recorded.seconds[0]
    assert alone("conserve")["tokens_per_joule"] == pytest.approx(tokens / joules, rel=1e-6)
    # Four decoders, of which one decodes as before, and a prefill that costs nothing.
    joules -= recorded.joules - recorded.idle_w * recorded.busy_s
    assert alone("conserve_oracle_4")["tokens_per_joule"] == pytest.approx(
        tokens / joules, rel=1e-6
    )
    joules = sum(sum(engine.energy_j().values()) for engine in whole("colocate", 1).engines)
    assert alone("colocate")["tokens_per_joule"] == pytest.approx(tokens / joules, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "overcounted"), [("ampd", OVERCOUNTED_TOKENS), ("ampd_corrected", 0)]
)
def test_detours_of_a_lone_conversation_come_on_top(name: str, overcounted: int) -> None:
    turns, (ttfet_s, _, e2e_s) = LONE.turns[0], standalone_s()
    detours_s = 0.0
    for before, turn in pairwise(turns):
        held = before.input_tokens + before.output_tokens
        detours_s += detour_s(held + overcounted, turn.input_tokens - held)
    without, found = alone(name, 0.0), alone(name, 1.0)
    assert found["ttfet_p95"] == pytest.approx(without["ttfet_p95"] + detours_s / ttfet_s, rel=1e-9)
    assert found["e2e_p95"] == pytest.approx(without["e2e_p95"] + detours_s / e2e_s, rel=1e-9)
    assert found["span_s"] == pytest.approx(without["span_s"] + detours_s, rel=1e-9)
    assert found["tbt_p95"] == pytest.approx(without["tbt_p95"], rel=1e-9)
    assert without == pytest.approx(alone("conserve"), rel=1e-12)
    # The detours, at the prefill engine's power, and idleness of all four.
    tokens = sum(turn.input_tokens + turn.output_tokens for turn in turns)
    recorded = prefills(CLUSTER, LONE)
    more_j = detours_s * (recorded.joules / recorded.busy_s + 4 * recorded.idle_w)
    assert tokens / found["tokens_per_joule"] == pytest.approx(
        tokens / without["tokens_per_joule"] + more_j, rel=1e-9
    )


def test_delays_of_the_recorded_prefiller_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    without, (ttfet_s, _, e2e_s) = alone("ampd", 1.0), standalone_s()
    monkeypatch.setattr(VirtualPrefiller, "delays_s", lambda _: [10.0])
    found = alone("ampd", 1.0)
    assert found["ttfet_p95"] == pytest.approx(without["ttfet_p95"] + 10.0 / ttfet_s)
    assert found["e2e_p95"] == pytest.approx(without["e2e_p95"] + 10.0 / e2e_s)
    assert found["tbt_mean_p95"] == without["tbt_mean_p95"]


def test_misrouted_turns_queue_behind_prompts_from_their_arrival_to_their_kvs() -> None:
    draw = drawn()
    recorded = prefills(CLUSTER, draw)
    prefiller = artifact_clock._detours(draw, recorded, 0.1, overcounts=True)._prefiller
    left = [start + s for start, s in zip(draw.starts_s, recorded.seconds, strict=True)]
    queued = 0
    for tenth in range(1, 100):
        now = tenth / 10
        here = [gone for came, gone in zip(draw.offered_s, left, strict=True) if came <= now < gone]
        queued += len(here) > 1
        assert prefiller.block(now, 0.0) == pytest.approx(max(here, default=now) - now)
    assert queued


@pytest.mark.parametrize("name", ARTIFACT)
def test_prompts_are_counted_at_the_prefill_engine_where_all_turns_pass_it(name: str) -> None:
    arm, draw = ARMS[name], drawn()
    recorded = prefills(CLUSTER, draw) if name in STITCHED else None
    cluster, _ = artifact_clock._cluster(CLUSTER, arm, arm.policy(), draw, recorded, None)
    assert type(cluster._door) is (ProxyDoor if name == "full_disagg" else PollingDoor)


def test_violations_of_the_tbt_are_of_conversations_means() -> None:
    scenario = paper_scenario(replace(WORKLOAD, conversations=255))
    draw = recording.draw(scenario, recording.SATURATION, 42, redraw=False)
    found = artifact_clock.play(CLUSTER, ARMS["colocate_oracle"], draw, 0.0)
    assert found["tbt_slo_violation_pct"] == found["tbt_mean_slo_violation_pct"] > 0.0
    assert found["tbt_p95"] != found["tbt_mean_p95"]


@pytest.mark.parametrize("name", STITCHED)
def test_the_prefill_engine_of_a_replay_takes_no_time_and_no_energy(name: str) -> None:
    arm, draw = ARMS[name], drawn()
    policy = arm.policy()
    recorded = prefills(CLUSTER, draw)
    cluster, _ = artifact_clock._cluster(CLUSTER, arm, policy, draw, recorded, None)
    while cluster.advance():
        cluster.place(policy.decide(cluster.observe()))
    assert len(cluster.engines) == (5 if arm.run is Run.FREE_PREFILL else 4)
    assert sum(cluster.engines[0].energy_j().values()) == 0.0
    placed = {e.conversation: e.time for e in cluster.ledger if isinstance(e, Placed)}
    prefilled = {e.conversation: e.time for e in cluster.ledger if isinstance(e, Prefilled)}
    assert placed.keys() == prefilled.keys() == set(range(12))
    for one, time in placed.items():
        assert 0.0 <= prefilled[one] - time < 1e-7
    moves = [event for event in cluster.ledger if isinstance(event, KvMoved)]
    assert len(moves) == 12
    assert max(event.seconds for event in moves) < 1e-7
    # Conversations come when a decoder had their prompt's KV; the first one's is time 0.
    left = [start + s for start, s in zip(draw.starts_s, recorded.seconds, strict=True)]
    assert [one.arrival_s for one in cluster.conversations] == [time - left[0] for time in left]
    assert not [e for e in cluster.ledger if isinstance(e, FirstToken) and e.engine == 0]


@pytest.mark.parametrize("name", ARTIFACT)
def test_the_same_seed_gives_the_same_metrics(name: str) -> None:
    first, again = (artifact_clock.play(CLUSTER, ARMS[name], drawn(), 0.1) for _ in range(2))
    assert first == again
    assert 0.0 < first["tokens_per_joule"] < 1e3
    assert first["ttfet_p95"] > 0.5
    assert first["preemptions"] == 0.0
    # Nobody is faster than the clock of a whole run, where the queues are counted too.
    if ARMS[name].own_run:
        policy = ARMS[name].policy()
        whole_run = Cluster(CLUSTER, policy.deployment, arriving(drawn()))
        assert first["span_s"] < 1.3 * measured(whole_run, policy, 42).metrics["span_s"]


@pytest.mark.parametrize("name", ARTIFACT)
def test_power_caps_change_energy(name: str) -> None:
    caps = tuple(CAPS)
    found = {
        cap: play(spec(caps=caps), Cell("paper", cap, name, "artifact", 1.634, 42)) for cap in caps
    }
    energy = [found[cap]["tokens_per_joule"] for cap in caps]
    assert len(set(energy)) == 3
    if name in STITCHED and ARMS[name].run is Run.DECODERS:
        # The recorded times stay, and so does what only the decoders' cap touches.
        assert found["300/200"]["ttfet_p50"] != found["200/200"]["ttfet_p50"]


def test_the_prefiller_is_taken_from_the_clusters_first_engine() -> None:
    slower = load_scenario(["cluster=a40_1p3d_200w"]).cluster
    assert prefills(slower, LONE).seconds[0] > prefills(CLUSTER, LONE).seconds[0]
    capped = load_scenario(["cluster=a40_1p3d_capped_decoders"]).cluster
    assert prefills(capped, LONE) == prefills(CLUSTER, LONE)
    renamed = replace(CLUSTER, name="another")
    assert prefills(renamed, LONE) == prefills(CLUSTER, LONE)
