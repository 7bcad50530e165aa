"""What holds on every cluster, under every workload and policy."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from random_episodes import EXAMPLES, Episode, after_every_event, episodes
from reference_network import Sent, arrivals

from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.ledger import (
    ConversationEnded,
    Event,
    FirstToken,
    KvMoved,
    Placed,
    Prefilled,
    TurnArrived,
    TurnFinished,
)
from conserve_gym.placement import Placement


def of_type(cluster: Cluster, kind: type[Event]) -> list[Event]:
    return [event for event in cluster.ledger if isinstance(event, kind)]


@EXAMPLES
@given(episodes())
def test_every_turn_is_served_once_in_order_with_the_tokens_asked_for(episode: Episode) -> None:
    cluster = episode.play()
    for i, conversation in enumerate(episode.conversations):
        seen: list[Event] = [
            event
            for event in cluster.ledger
            if getattr(event, "conversation", None) == i
            and isinstance(event, TurnArrived | FirstToken | TurnFinished | ConversationEnded)
        ]
        expected = [
            (kind, turn)
            for turn in range(len(conversation.turns))
            for kind in (TurnArrived, FirstToken, TurnFinished)
        ]
        assert [(type(event), event.turn) for event in seen[:-1]] == expected
        assert seen[-1]._replace(time=0.0) == ConversationEnded(0.0, i, len(conversation.turns))
        arrived, finished = seen[0:-1:3], seen[2:-1:3]
        for turn, arrival, end in zip(conversation.turns, arrived, finished, strict=True):
            assert (arrival.input_tokens, arrival.new_tokens) == turn[:2]
            assert (end.input_tokens, end.output_tokens) == (turn.input_tokens, turn.output_tokens)
            assert 0 <= end.cached_tokens < turn.input_tokens


@EXAMPLES
@given(episodes())
def test_a_turn_follows_the_one_before_it_after_its_gap(episode: Episode) -> None:
    cluster = episode.play()
    finished = {(e.conversation, e.turn): e.time for e in of_type(cluster, TurnFinished)}
    for event in of_type(cluster, TurnArrived):
        conversation = episode.conversations[event.conversation]
        if event.turn:
            due = (
                finished[event.conversation, event.turn - 1] + conversation.turns[event.turn].gap_s
            )
        else:
            due = conversation.arrival_s
        assert math.isclose(event.time, due, rel_tol=1e-12)


@EXAMPLES
@given(episodes())
def test_kv_stays_within_the_pool_and_nobody_holds_any_at_the_end(episode: Episode) -> None:
    def watch(cluster: Cluster) -> None:
        def check() -> None:
            for engine in cluster.engines:
                kv = engine.kv
                assert 0 <= kv.used_blocks <= kv.capacity_blocks
                assert 0 <= kv._idle_blocks <= kv.used_blocks
                assert kv.allocated_blocks - kv.freed_blocks == kv.used_blocks

        after_every_event(cluster, check)

    for engine in episode.play(before=watch).engines:
        assert engine.is_idle
        assert engine.kv.available_blocks == engine.kv.capacity_blocks
        if not episode.deployment.prefix_caching:
            assert engine.kv.used_blocks == 0


@EXAMPLES
@given(episodes())
def test_time_never_runs_back(episode: Episode) -> None:
    times = [event.time for event in episode.play().ledger]
    assert times == sorted(times)
    assert times[0] >= 0.0


@EXAMPLES
@given(episodes())
def test_kv_moves_are_those_that_the_placements_imply(episode: Episode) -> None:
    cluster = episode.play()
    caching = episode.deployment.prefix_caching
    placements: dict[int, Placement] = {}
    placed: dict[int, int] = {}
    homes: dict[int, int] = {}
    moves: dict[tuple[int, int], list[KvMoved]] = defaultdict(list)
    prefilled: dict[tuple[int, int], Prefilled] = {}
    for event in cluster.ledger:
        if isinstance(event, Placed):
            placements[event.conversation] = Placement(*event[3:])
            placed[event.conversation] = event.turn
        elif isinstance(event, Prefilled):
            prefilled[event.conversation, event.turn] = event
        elif isinstance(event, KvMoved):
            moves[event.conversation, event.turn].append(event)
        elif isinstance(event, FirstToken):
            key = event.conversation, event.turn
            turn = episode.conversations[event.conversation].turns[event.turn]
            prefill_at, decode_at, _ = placement = placements[event.conversation]
            assert event.engine == decode_at
            computed_at, home = decode_at, homes.get(event.conversation)
            if placement.offloads(placed[event.conversation] == event.turn, turn.new_tokens):
                computed_at = prefill_at
                # What the decoder lacks comes to it at last, the prompt's last token included.
                last = moves[key].pop()
                assert (last.source, last.target) == (prefill_at, decode_at)
                kept = turn.input_tokens - last.tokens
                assert 0 <= kept < turn.input_tokens
                assert not kept or (caching and event.turn)
                prompt = prefilled.pop(key)
                assert (prompt.engine, prompt.tokens) == (prefill_at, turn.input_tokens)
                assert prompt.time <= last.time - last.seconds + 1e-9
            # Before that, history may have come from where the turn before it was decoded.
            pull = moves.pop(key, [])
            assert len(pull) <= 1
            for move in pull:
                assert caching and episode.deployment.pulls_history
                assert (move.source, move.target) == (home, computed_at)
                assert home != computed_at
                assert move.tokens <= turn.input_tokens - turn.new_tokens
            homes[event.conversation] = decode_at
    assert not any(moves.values())
    assert not prefilled


@EXAMPLES
@given(episodes())
def test_asking_engines_for_their_queues_changes_nothing(episode: Episode) -> None:
    asking = replace(episode, deployment=replace(episode.deployment, engine_exports=True))
    assert asking.play().ledger.digest() == episode.play().ledger.digest()


@EXAMPLES
@given(episodes())
def test_moves_take_as_long_as_the_wires_that_they_share_let_them(episode: Episode) -> None:
    ledger = episode.play().ledger
    prefilled = {(e.conversation, e.turn): e for e in ledger if isinstance(e, Prefilled)}
    sent = []
    for event in (event for event in ledger if isinstance(event, KvMoved)):
        # What a prefill engine sends home leaves as its prompt is done; history leaves before.
        prompt = prefilled.get((event.conversation, event.turn))
        is_history = prompt is None or prompt.time > event.time
        began_s = event.time - event.seconds
        if not is_history:
            assert prompt is not None
            assert event.seconds == event.time - prompt.time
            began_s = prompt.time
        computed = 0
        if prompt is not None and not is_history:
            computed = min(event.tokens, prompt.tokens - prompt.cached_tokens)
        move = Sent(began_s, event.source, event.target, event.tokens, computed)
        sent.append((move, event.time))
    sent.sort(key=lambda pair: pair[0].time)
    spec = episode.spec
    moves = [move for move, _ in sent]
    due = arrivals(spec.network, spec.nodes, spec.kv_bytes_per_token, moves)
    for (_, arrived_s), due_s in zip(sent, due, strict=True):
        assert math.isclose(arrived_s, due_s, rel_tol=1e-9)


@EXAMPLES
@given(episodes())
def test_pinned_conversations_are_placed_once_and_others_every_turn(episode: Episode) -> None:
    placed = Counter((e.conversation, e.turn) for e in of_type(episode.play(), Placed))
    every_turn = episode.deployment.decides_every_turn
    assert placed == Counter(
        (i, turn)
        for i, conversation in enumerate(episode.conversations)
        for turn in range(len(conversation.turns) if every_turn else 1)
    )


@EXAMPLES
@given(episodes(), st.integers(0, 2**32))
def test_energy_is_the_integral_of_a_power_between_idle_and_cap(
    episode: Episode, seed: int
) -> None:
    powers = [episode.spec.tier(engine).power for engine in episode.spec.engines]

    def watch(cluster: Cluster) -> None:
        rng, time = random.Random(seed), 0.0
        for _ in range(300):  # meters are read at many times, most of them within a step
            time += rng.expovariate(100.0)
            cluster._clock.timeout(time)
        before_s, before = cluster.now, [engine.energy_j() for engine in cluster.engines]

        def check() -> None:
            nonlocal before_s, before
            after = [engine.energy_j() for engine in cluster.engines]
            passed_s = cluster.now - before_s
            for power, earlier, later in zip(powers, before, after, strict=True):
                used_j = sum(later.values()) - sum(earlier.values())
                rounding_j = 1e-9 * (1.0 + sum(later.values()))
                assert used_j >= power.idle_w * passed_s - rounding_j
                assert used_j <= power.cap_w * passed_s + rounding_j
                assert all(later[phase] >= earlier[phase] - rounding_j for phase in later)
            before_s, before = cluster.now, after

        after_every_event(cluster, check)

    cluster = episode.play(before=watch)
    joules = cluster.meter()
    phases = [engine.energy_j() for engine in cluster.engines]
    assert math.isclose(joules, sum(sum(by_phase.values()) for by_phase in phases))
    busy = ("prefill", "mixed", "decode")
    for engine, by_phase in zip(cluster.engines, phases, strict=True):
        assert all(
            by_phase[phase] == engine.joules[phase] for phase in busy
        )  # nothing is under way


@EXAMPLES
@given(episodes())
def test_the_same_episode_gives_the_same_ledger(episode: Episode) -> None:
    assert list(episode.play().ledger.lines()) == list(episode.play().ledger.lines())


@EXAMPLES
@given(episodes())
def test_reading_the_meters_changes_nothing(episode: Episode) -> None:
    def read(cluster: Cluster) -> None:
        for engine in cluster.engines:
            engine.energy_j()

    metered = episode.play(before=lambda c: after_every_event(c, lambda: read(c)))
    assert metered.ledger.digest() == episode.play().ledger.digest()


@EXAMPLES
@given(episodes(most_conversations=12), st.sampled_from(Reservation), st.booleans())
def test_no_conversation_is_lost_where_all_prefill_for_each_other_in_tiny_pools(
    episode: Episode, reservation: Reservation, every_turn: bool
) -> None:
    peak = max(conversation.peak_tokens for conversation in episode.conversations)
    tight = replace(
        episode,
        conversations=tuple(c._replace(arrival_s=0.0) for c in episode.conversations),
        deployment=Deployment(
            all_mixed=True, reservation=reservation, decides_every_turn=every_turn
        ),
        spec=replace(
            episode.spec,
            engines=tuple(
                replace(
                    engine,
                    kv_capacity_tokens=-(-peak // engine.block_tokens) * engine.block_tokens,
                )
                for engine in episode.spec.engines
            ),
        ),
    )
    cluster = tight.play()
    ended = [event.conversation for event in of_type(cluster, ConversationEnded)]
    assert sorted(ended) == list(range(len(tight.conversations)))
    assert all(e.kv.available_blocks == e.kv.capacity_blocks for e in cluster.engines)


@EXAMPLES
@given(episodes())
def test_nothing_is_kept_of_conversations_that_have_ended(episode: Episode) -> None:
    cluster = episode.play()
    cluster.observe()  # reads the ledger to its end
    assert not (cluster._placements or cluster._been_at or cluster._at_decoder)
    assert not (cluster.observer._conversations or cluster._door._peaks)
    for engine in cluster.engines:
        assert not (engine._waiting or engine._running or engine._prefilling or engine._chunks)
        assert not (engine._kv_arrived or engine._unseen or engine._batch.sequences)


@EXAMPLES
@given(episodes(), st.lists(st.integers(0, 99), min_size=1, max_size=3))
def test_policies_shift_neither_arrivals_nor_lengths(episode: Episode, choices: list[int]) -> None:
    def arrivals(played: Episode) -> list[Event]:
        return [e for e in of_type(played.play(), TurnArrived) if e.turn == 0]

    def lengths(played: Episode) -> set[tuple[int, ...]]:
        ends = of_type(played.play(), TurnFinished)
        return {(e.conversation, e.turn, e.input_tokens, e.output_tokens) for e in ends}

    for choice in choices:
        for every_turn in (False, True):
            deployment = replace(episode.deployment, decides_every_turn=every_turn)
            other = replace(episode, choices=choice, deployment=deployment)
            assert arrivals(other) == arrivals(episode)
            assert lengths(other) == lengths(episode)


PRINT_DIGESTS = """
import numpy as np
from conserve_gym.baselines.registry import BASELINES, make_baseline
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.profile import site
from conserve_gym.envs.workloads.workload import draw_episode

scenario = load_scenario(["workload.conversations=20", "cluster=a40_4mixed", "arrivals.rate=4"])
for name in BASELINES:
    policy = make_baseline(name, site(scenario.cluster))
    policy.reset(7)
    drawn = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(7))
    cluster = Cluster(scenario.cluster, policy.deployment, drawn)
    while cluster.advance():
        cluster.place(policy.decide(cluster.observe()))
    cluster.meter()
    print(cluster.ledger.digest())
"""


def test_the_same_seed_gives_the_same_ledger_in_every_process() -> None:
    digests = [
        subprocess.run(
            [sys.executable, "-c", PRINT_DIGESTS],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for hash_seed in ("1", "2")
    ]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) > 1
