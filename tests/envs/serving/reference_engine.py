"""A deliberately plain engine: what the engine of `conserve_gym.envs.serving` has to equal.

It follows the same rules by other means. Every step is one event; every sequence has a list of
numbered blocks and its own counts; every sum is a loop; time and energy of a step are written out
from the hardware's coefficients. Of the package it uses the request that the cluster hands in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import simpy

from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.request import EngineListener, Request


@dataclass(eq=False)
class Sequence:
    """A turn that runs: its blocks, and how much of it they hold."""

    request: Request
    table: list[int] = field(default_factory=list)
    generated: int = 0
    length: int = 0  # tokens whose KV is in the pool
    needed: int = 0  # tokens whose KV must be there before the next token can be sampled
    decodes: bool = False
    first_token_out: bool = False
    pulling: bool = False  # its old KV is on its way here


class Pool:
    """Numbered blocks, and the tables of conversations that are idle."""

    def __init__(self, capacity_tokens: int, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.capacity_blocks = capacity_tokens // block_tokens
        self.unused = list(range(self.capacity_blocks))
        self.idle: dict[int, tuple[list[int], int]] = {}  # least recently used first
        self.allocated_blocks = 0
        self.freed_blocks = 0
        self.evicted_blocks = 0

    @property
    def used_blocks(self) -> int:
        return self.capacity_blocks - len(self.unused)

    def blocks(self, tokens: int) -> int:
        blocks = 0
        while blocks * self.block_tokens < tokens:
            blocks += 1
        return blocks

    def obtainable(self) -> int:
        return len(self.unused) + sum(len(table) for table, _ in self.idle.values())

    def take(self) -> int:
        if not self.unused:
            self._evict_one()
        self.allocated_blocks += 1
        return self.unused.pop()

    def give_back(self, table: list[int]) -> None:
        for block in table:
            assert block not in self.unused
            self.unused.append(block)
            self.freed_blocks += 1

    def park(self, conversation: int, table: list[int], tokens: int) -> None:
        assert len(table) == self.blocks(tokens)
        self.idle[conversation] = (table, tokens)

    def wake(self, conversation: int, tokens: int, reusable_tokens: int) -> tuple[list[int], int]:
        """Return a table with room for `tokens`, and how many of them are cached in it."""
        table, resident = self.idle.pop(conversation, ([], 0))
        whole = 0  # blocks that can be reused; the last token is never among them
        while (whole + 1) * self.block_tokens <= min(resident, reusable_tokens, tokens - 1):
            whole += 1
        self.give_back(table[whole:])
        table = table[:whole]
        while len(table) * self.block_tokens < tokens:
            table.append(self.take())
        return table, whole * self.block_tokens

    def trim(self, conversation: int, tokens: int) -> None:
        table, resident = self.idle.get(conversation, ([], 0))
        if resident > tokens:
            whole = self.blocks(tokens)
            self.give_back(table[whole:])
            self.idle[conversation] = (table[:whole], tokens)
            if not tokens:
                del self.idle[conversation]

    def _evict_one(self) -> None:
        conversation = next(iter(self.idle))
        table, tokens = self.idle[conversation]
        self.give_back([table[-1]])
        self.evicted_blocks += 1
        if len(table) == 1:
            del self.idle[conversation]
        else:
            tokens = min(tokens, (len(table) - 1) * self.block_tokens)
            self.idle[conversation] = (table[:-1], tokens)


class ReferenceEngine:
    """One GPU under an inference engine, step by step."""

    def __init__(
        self,
        clock: simpy.Environment,
        hardware: Hardware,
        *,
        kv_capacity_tokens: int,
        block_tokens: int,
        token_budget: int,
        max_sequences: int,
        prefix_caching: bool,
        listener: EngineListener,
        track: None = None,
    ) -> None:
        self.clock = clock
        self.hardware = hardware
        self.token_budget = token_budget
        self.max_sequences = max_sequences
        self.prefix_caching = prefix_caching
        self.listener = listener
        self.kv = Pool(kv_capacity_tokens, block_tokens)
        self.steps = 0
        self.preemptions = 0
        self.joules = {"prefill": 0.0, "mixed": 0.0, "decode": 0.0, "idle": 0.0}

        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []  # in order of admission
        self.prefilling: list[Sequence] = []  # of these, those that compute their prompt, likewise
        self.batch: list[Sequence] = []  # and those that decode, in order of joining
        self.arrived: list[Request] = []
        self.set_aside: dict[int, list[int]] = {}  # tables for KV that is yet to be moved here
        self.sent_off: dict[int, list[int]] = {}  # tables of prompts computed for other engines
        self.lent: dict[int, list[int]] = {}  # tables that are being copied to other engines

        self.steps_now = False
        self.deciding = False
        self.since = 0.0  # when the step or the idleness under way began
        self.step_seconds = 0.0
        self.step_joules = 0.0
        self.phase = "idle"
        self.chunks: list[tuple[Sequence, int]] = []

    # --- what the cluster asks ---

    def submit(self, request: Request) -> None:
        request.submitted_s = self.clock.now
        self.waiting.append(Sequence(request))
        self._start_if_idle()

    def nudge(self) -> None:
        self._start_if_idle()

    def reserve(self, conversation: int, tokens: int, reusable_tokens: int) -> int | None:
        if self.kv.blocks(tokens) > self.kv.obtainable():
            return None
        table, cached = self.kv.wake(conversation, tokens, reusable_tokens)
        self.set_aside[conversation] = table
        return cached

    def deliver(self, request: Request) -> None:
        request.submitted_s = self.clock.now
        self.arrived.append(request)
        self._start_if_idle()

    def release(self, request: Request) -> None:
        table = self.sent_off.pop(request.conversation)
        self._let_go(request.conversation, table, request.input_tokens)
        self.listener.on_room_freed()
        self._start_if_idle()

    def idle_tokens(self, conversation: int) -> int:
        return self.kv.idle.get(conversation, ([], 0))[1]

    def lend(self, conversation: int) -> int:
        self.lent[conversation], tokens = self.kv.idle.pop(conversation)
        return tokens

    def take_back(self, conversation: int, tokens: int) -> None:
        self.kv.park(conversation, self.lent.pop(conversation), tokens)
        self.listener.on_room_freed()
        self._start_if_idle()

    def pulled(self, request: Request, tokens: int) -> None:
        sequence = next(s for s in self.running if s.request is request)
        sequence.pulling = False
        sequence.length = request.cached_tokens = tokens
        self.prefilling.append(sequence)
        self._start_if_idle()

    def forget(self, conversation: int, valid_tokens: int) -> None:
        self.kv.trim(conversation, valid_tokens)

    def energy_j(self) -> dict[str, float]:
        joules = dict(self.joules)
        elapsed = self.clock.now - self.since
        if self.steps_now:
            joules[self.phase] += self.step_joules * elapsed / self.step_seconds
        else:
            joules["idle"] += self.hardware.power.idle_w * elapsed
        return joules

    @property
    def is_idle(self) -> bool:
        return not self.steps_now

    # --- one step ---

    def _start_if_idle(self) -> None:
        if not self.steps_now and not self.deciding:
            self.joules["idle"] += self.hardware.power.idle_w * (self.clock.now - self.since)
            self._start_step()

    def _start_step(self) -> None:
        self.deciding = True
        self.since = self.clock.now
        if not self._take_blocks_for_decodes():
            self._admit()

        tokens_left = self.token_budget - len(self.batch)
        self.chunks = []
        for sequence in self.prefilling:
            if tokens_left > 0:
                chunk = min(sequence.needed - sequence.length, tokens_left)
                tokens_left -= chunk
                self.chunks.append((sequence, chunk))

        self.deciding = False
        self.steps_now = bool(self.chunks or self.batch)
        if self.steps_now:
            self.step_seconds = self._seconds()
            self.step_joules = self._joules()
            self.phase = "decode"
            if self.chunks:
                self.phase = "mixed" if self.batch else "prefill"
            self.clock.timeout(self.step_seconds).callbacks.append(self._end_step)

    def _end_step(self, _: simpy.Event) -> None:
        self.deciding = True
        self.steps += 1
        self.joules[self.phase] += self.step_joules
        batch = list(self.batch)
        for sequence in batch:
            sequence.length += 1
            sequence.generated += 1
        for sequence in batch:
            self._tell_first_token(sequence)
        for sequence in batch:
            if sequence.generated == sequence.request.output_tokens:
                self.batch.remove(sequence)
                self._end_turn(sequence)
        for sequence, chunk in self.chunks:
            sequence.length += chunk
            if sequence.length == sequence.needed:
                self._end_prompt(sequence)
        self._start_step()

    # --- prompts ---

    def _admit(self) -> None:
        """Let waiting turns run while there is budget, memory and a place in the batch."""
        budget = self.token_budget - len(self.batch)
        for sequence in self.prefilling:
            budget -= sequence.needed - sequence.length
        for sequence in list(self.waiting):
            request = sequence.request
            needed = request.input_tokens + sequence.generated
            if budget <= 0 or len(self.running) >= self.max_sequences:
                return
            if self.kv.blocks(needed) > self.kv.obtainable():
                return
            for_another_engine = request.output_tokens == 0
            if for_another_engine and not self.listener.reserves(request):
                continue
            self.waiting.remove(sequence)
            sequence.table, sequence.length = self.kv.wake(
                request.conversation, needed, request.reusable_tokens
            )
            sequence.needed = needed
            if request.started_s < 0.0:
                request.started_s = self.clock.now
                request.cached_tokens = sequence.length
            self.running.append(sequence)
            request.computed = sequence.length
            if request.history_at >= 0 and self.listener.pulls(request):
                sequence.pulling = True
                continue
            self.prefilling.append(sequence)
            budget -= needed - sequence.length

    def _end_prompt(self, sequence: Sequence) -> None:
        request = sequence.request
        self.prefilling.remove(sequence)
        if request.output_tokens == 0:
            self.running.remove(sequence)
            self.sent_off[request.conversation] = sequence.table
            self.listener.on_prefilled(request)
            return
        sequence.generated += 1
        self._tell_first_token(sequence)
        if sequence.generated == request.output_tokens:
            self._end_turn(sequence)
        else:
            self._join_batch(sequence)

    # --- decodes ---

    def _join_batch(self, sequence: Sequence) -> None:
        sequence.decodes = True
        self.batch.append(sequence)

    def _tell_first_token(self, sequence: Sequence) -> None:
        if not sequence.first_token_out:
            sequence.first_token_out = True
            self.listener.on_first_token(sequence.request)

    def _end_turn(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        request = sequence.request
        self.listener.on_turn_finished(request)
        self._let_go(request.conversation, sequence.table, sequence.length)
        self.listener.on_room_freed()
        self.listener.after_turn(request)

    def _take_in(self, request: Request) -> None:
        """Let a turn whose KV was moved here decode."""
        sequence = Sequence(request, self.set_aside.pop(request.conversation))
        sequence.length = request.input_tokens - 1
        request.cached_tokens = sequence.length
        request.started_s = self.clock.now
        self.running.append(sequence)
        self._join_batch(sequence)

    def _take_blocks_for_decodes(self) -> bool:
        """Give a block to each sequence whose last one is full; the youngest turns make way."""
        preempted = False
        while True:
            while self.arrived and len(self.running) < self.max_sequences:
                self._take_in(self.arrived.pop(0))
            full = [
                sequence
                for sequence in self.batch
                if len(sequence.table) * self.kv.block_tokens == sequence.length
            ]
            if len(full) <= self.kv.obtainable():
                break
            # A prompt for another engine takes no more blocks, and ends by itself; and nobody takes
            # blocks that are being written to.
            own = [s for s in self.running if s.request.output_tokens and not s.pulling]
            self._preempt(own[-1])
            preempted = True
        for sequence in full:
            sequence.table.append(self.kv.take())
        return preempted

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        if sequence.decodes:
            self.batch.remove(sequence)
        else:
            self.prefilling.remove(sequence)
        whole = self.kv.blocks(sequence.length)
        self.kv.give_back(sequence.table[whole:])
        self._let_go(sequence.request.conversation, sequence.table[:whole], sequence.length)
        sequence.table = []
        sequence.decodes = False
        sequence.request.reusable_tokens = sequence.length if self.prefix_caching else 0
        sequence.request.history_at = -1
        self.waiting.insert(0, sequence)
        self.listener.on_room_freed()

    def _let_go(self, conversation: int, table: list[int], tokens: int) -> None:
        if self.prefix_caching and tokens:
            self.kv.park(conversation, table, tokens)
        else:
            self.kv.give_back(table)

    # --- the laws of a step, from the coefficients ---

    def _seconds(self) -> float:
        prefill, decode = self.hardware.prefill, self.hardware.decode
        sequences = len(self.batch)
        kv_tokens = sum(sequence.length for sequence in self.batch)
        overhead = self.hardware.overhead
        overhead_s = overhead.step_ms / 1e3 + overhead.sequence_us / 1e6 * sequences
        decode_floor_s = decode.floor_ms / 1e3 + decode.floor_sequence_us / 1e6 * sequences
        if not self.chunks:
            memory_s = decode.base_ms / 1e3 + decode.sequence_us / 1e6 * sequences
            memory_s += decode.kv_us / 1e6 * kv_tokens
            return overhead_s + max(decode_floor_s, memory_s)
        tokens = sequences
        attention_s = 0.0
        scanned = max((sequence.length for sequence in self.batch), default=0)
        for sequence, chunk in self.chunks:
            tokens += chunk
            attention_s += prefill.attention_ns / 1e9 * chunk * (sequence.length + chunk / 2)
            scanned = max(scanned, sequence.length)
        tile_us = self.hardware.mixed.tile_queries * prefill.attention_ns / 1e3
        attention_s += math.sqrt(decode.kv_us**2 + tile_us**2) / 1e6 * kv_tokens
        seconds = prefill.base_ms / 1e3 + decode.sequence_us / 1e6 * sequences
        seconds += math.sqrt(
            (prefill.weights_ms / 1e3) ** 2 + (prefill.token_us / 1e6 * tokens) ** 2
        )
        seconds += math.sqrt((prefill.scan_us / 1e6 * scanned) ** 2 + attention_s**2)
        seconds = ((prefill.floor_ms / 1e3) ** 8 + seconds**8) ** 0.125
        if sequences:
            seconds = max(seconds, decode_floor_s)
        return overhead_s + seconds

    def _joules(self) -> float:
        power, figures = self.hardware.power, self.hardware.figures
        kv_gb = figures.kv_bytes_per_token / 1e9
        moved_gb = figures.weights_gb
        tflop = 0.0
        for sequence, chunk in self.chunks:
            moved_gb += kv_gb * (sequence.length + chunk)
            tflop += figures.gflop_per_token / 1e3 * chunk
            attended = chunk * (sequence.length + chunk / 2)
            tflop += figures.kflop_per_attended_token / 1e9 * attended
        for sequence in self.batch:
            moved_gb += kv_gb * (sequence.length + 1)
            tflop += figures.gflop_per_token / 1e3
            tflop += figures.kflop_per_attended_token / 1e9 * sequence.length
        joules = power.base_w * self.step_seconds
        joules += power.joule_per_gb * moved_gb + power.joule_per_tflop * tflop
        return min(joules, power.cap_w * self.step_seconds)
