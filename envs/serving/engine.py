"""One engine: continuous batching with chunked prefill on a block-granular KV pool.

Each step carries one token of every decoding sequence and fills the rest of the token budget
with prompt chunks, first come first served, as vLLM's V1 scheduler does. A step with prompt
tokens is one event. Between two changes of the batch, steps of decodes only follow a closed
form, so a whole run of them is one event, cut at a step boundary when something arrives; the
result is that of stepping one by one.
"""

from __future__ import annotations

from collections import deque
from typing import cast

from conserve_gym.envs.serving.clock import Call, Clock
from conserve_gym.envs.serving.decode_batch import DecodeBatch
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.kv_cache import KvCache
from conserve_gym.envs.serving.power import StepEnergy
from conserve_gym.envs.serving.request import EngineListener, Request
from conserve_gym.envs.serving.step_time import DecodeRun, StepTime
from conserve_gym.envs.serving.timeline import Phase, Track
from conserve_gym.observation import EngineExport


class Engine:
    """One GPU under an inference engine.

    Args:
        clock: Event queue that all engines share.
        hardware: Tier, with the laws of time and power.
        kv_capacity_tokens: Size of the KV pool.
        block_tokens: Tokens in a KV block.
        token_budget: Tokens that a step may carry (``max_num_batched_tokens``).
        max_sequences: Turns that may run at once (``max_num_seqs``).
        prefix_caching: Whether KV stays after a turn, until it is evicted, to be reused.
        listener: Who hears what happens.
        track: Where to write down what runs when; None writes nothing.

    Attributes:
        kv: The KV pool.
        steps: Steps completed.
        preemptions: Turns that lost their KV to older ones and were computed again.
        joules: Energy used so far by phase; what is under way is not yet in.
    """

    def __init__(
        self,
        clock: Clock,
        hardware: Hardware,
        *,
        kv_capacity_tokens: int,
        block_tokens: int,
        token_budget: int,
        max_sequences: int,
        prefix_caching: bool,
        listener: EngineListener,
        track: Track | None = None,
    ) -> None:
        """Start idle and empty."""
        self._clock = clock
        self._time = StepTime(hardware)
        self._request_s = hardware.overhead.request_ms * 1e-3
        self._energy = StepEnergy(hardware)
        self._token_budget = token_budget
        self._max_sequences = max_sequences
        self._prefix_caching = prefix_caching
        self._listener = listener
        self._track = track
        self.kv = KvCache(kv_capacity_tokens, block_tokens)
        self.steps = 0
        self.preemptions = 0
        self.joules = {"prefill": 0.0, "mixed": 0.0, "decode": 0.0, "idle": 0.0}

        self._waiting: deque[Request] = deque()
        self._running: dict[Request, None] = {}  # in order of admission
        self._prefilling: list[Request] = []
        self._kv_arrived: deque[Request] = deque()  # join the batch when it has a place
        self._unseen: list[Request] = []  # decoding, first token not out yet
        self._copies: deque[tuple[float, object]] = deque()  # to stop for: seconds, and whose

        self._batch = DecodeBatch(block_tokens)

        self._step_end: Call | None = None  # None: idle, or between two steps
        self._between_steps = False
        self._began_s = 0.0  # the step or run under way, or idleness
        self._chunks: list[Request] = []  # turns with prompt tokens in the step under way
        self._step_seconds = 0.0
        self._step_joules = 0.0
        self._phase: Phase = "prefill"
        self._copying = False
        self._run: DecodeRun | None = None
        self._run_steps = 0
        self._run_grown = 0  # steps of the run whose blocks are taken

    # --- what the cluster asks ---

    def submit(self, request: Request) -> None:
        """Queue a turn whose prompt is computed here."""
        request.submitted_s = self._clock.now
        if self._request_s:
            self._clock.after(self._request_s, self._on_submitted, request)
        else:
            self._waiting.append(request)
            self._wake()

    def nudge(self) -> None:
        """Look again, at the next step boundary, at prompts that found no room elsewhere."""
        if self._waiting:
            self._wake()

    def reserve(self, conversation: int, tokens: int, reusable_tokens: int) -> int | None:
        """Set memory aside for a prompt whose KV will be moved here.

        Returns:
            Tokens of it that are here already, or None if there is no room.
        """
        if not self.kv.has_room_for(tokens):  # nor once settled: a run only takes room
            return None
        self._settle()
        if not self.kv.has_room_for(tokens):
            return None
        cached = self.kv.activate(conversation, tokens, reusable_tokens)
        self._cut_if_short()
        self._record_level()
        return cached

    def deliver(self, request: Request) -> None:
        """Hand over a turn whose KV was moved to the memory set aside for it.

        All tokens but the prompt's last have been moved: that one is computed here, to sample the
        first output token.
        """
        request.submitted_s = self._clock.now
        if self._request_s:
            self._clock.after(self._request_s, self._on_delivered, request)
        else:
            self._kv_arrived.append(request)
            self._wake()

    def copy(self, seconds: float, copy: object) -> None:
        """Stop for a copy of KV at the next step boundary; the listener hears when it is done.

        It is asked for by a request: a step may begin before that has come.
        """
        if self._request_s:
            self._clock.after(self._request_s, self._on_copy_asked, (seconds, copy))
        else:
            self._copies.append((seconds, copy))
            self._wake()

    def release(self, request: Request) -> None:
        """Let go of the KV of a prompt that was computed for another engine."""
        self._settle()
        self._let_go(request.conversation, request.input_tokens)
        self._record_level()
        self._listener.on_room_freed()
        if self._waiting:
            self._wake()

    def idle_tokens(self, conversation: int) -> int:
        """Return the tokens that an idle conversation holds."""
        self._settle()
        return self.kv.idle_tokens(conversation)

    def lend(self, conversation: int) -> int:
        """Keep an idle conversation's KV while it is copied to another engine.

        Returns:
            The tokens that it holds; ``take_back`` ends the loan.
        """
        self._settle()
        tokens = self.kv.hold(conversation)
        self._cut_if_short()
        self._record_level()
        return tokens

    def take_back(self, conversation: int, tokens: int) -> None:
        """Let KV that was lent be evicted again."""
        self._settle()
        self.kv.park(conversation, tokens)
        self._record_level()
        self._listener.on_room_freed()
        if self._waiting:
            self._wake()

    def pulled(self, request: Request, tokens: int) -> None:
        """Go on with a prompt whose first ``tokens`` have been copied here."""
        request.pulling = False
        request.computed = request.cached_tokens = tokens
        self._prefilling.append(request)
        self._wake()

    def forget(self, conversation: int, valid_tokens: int) -> None:
        """Give back what an idle conversation holds of a context that was rewritten."""
        if self.kv.idle_tokens(conversation) > valid_tokens:
            self._settle()
            self.kv.trim(conversation, valid_tokens)
            self._record_level()

    def export(self) -> EngineExport:
        """Return what engines tell routers that ask; steps under way count as not yet done."""
        self._settle()
        left = sum(request.to_compute - request.computed for request in self._prefilling)
        left += sum(request.to_compute - self._cached(request) for request in self._waiting)
        pulling = (request for request in self._running if request.pulling)
        left += sum(request.to_compute - self._cached(request) for request in pulling)
        return EngineExport(
            prompt_tokens=left,
            kv_free_tokens=self.kv.available_blocks * self.kv.block_tokens,
            decoding=self._batch.sequences + len(self._kv_arrived),
            kv_read_tokens=self._batch.kv_tokens,
        )

    def energy_j(self) -> dict[str, float]:
        """Return the joules used up to now, by phase."""
        joules = dict(self.joules)
        elapsed = self._clock.now - self._began_s
        if self._step_end is None or self._copying:
            joules["idle"] += self._energy.idle_w * elapsed
        elif self._run is not None:
            joules["decode"] += self._run_energy(elapsed)
        else:
            joules[self._phase] += self._step_joules * (elapsed / self._step_seconds)
        return joules

    @property
    def is_idle(self) -> bool:
        """Whether no step is under way."""
        return self._step_end is None

    # --- the event loop of one engine ---

    def _on_submitted(self, call: Call) -> None:
        self._waiting.append(cast(Request, call.value))
        self._wake()

    def _on_delivered(self, call: Call) -> None:
        self._kv_arrived.append(cast(Request, call.value))
        self._wake()

    def _wake(self) -> None:
        """Start a step if idle; cut a run of decode steps at its next boundary."""
        if self._between_steps:
            return
        if self._step_end is None:
            self._start_step()
        elif self._run is not None:
            self._cut()

    def _cut(self) -> None:
        run = self._run
        assert run is not None
        elapsed = self._clock.now - self._began_s
        steps = run.steps_within(elapsed) + 1
        if steps < self._run_steps:
            self._run_steps = steps
            self._schedule(run.elapsed(steps) - elapsed)

    def _cut_if_short(self) -> None:
        """Cut a run that was planned with memory that has been taken since."""
        if self._run is not None and not self._between_steps:
            ungrown = self._batch.blocks_for(self._run_grown, self._run_steps - self._run_grown)
            if ungrown > self.kv.available_blocks:
                self._cut()

    def _settle(self) -> None:
        """Bring the KV pool up to the step under way, so that others may touch it."""
        run = self._run
        if run is not None and not self._between_steps:
            begun = run.steps_within(self._clock.now - self._began_s) + 1
            self._grow_run(min(begun, self._run_steps))

    def _schedule(self, seconds: float) -> None:
        self._step_end = self._clock.after(seconds, self._on_step_end)

    def _start_step(self) -> None:
        now = self._clock.now
        if self._step_end is None:
            self.joules["idle"] += self._energy.idle_w * (now - self._began_s)
        if self._copies:
            self._between_steps = False
            self._run = None
            self._began_s = now
            self._step_seconds, copy = self._copies[0]
            self._copying = True
            self._step_end = self._clock.after(self._step_seconds, self._on_copied, copy)
            return
        self._between_steps = True
        self._grow_decodes()
        chunks = self._chunks = []
        if self._prefilling or self._waiting:
            chunks = self._chunks = self._next_chunks()
        self._between_steps = False
        self._began_s = now
        sequences = self._batch.sequences
        if chunks:
            self._run = None
            self._start_prefill_step(chunks, sequences)
        elif sequences:
            self._run = run = self._time.decode_run(sequences, self._batch.kv_tokens)
            self._run_grown = 1
            self._run_steps = self._plan_run()
            self._schedule(run.elapsed(self._run_steps))
        else:
            self._run = None
            self._step_end = None
        if self._track is not None:
            if self._step_end is not None:
                phase = self._phase if chunks else "decode"
                prompt_tokens = sum(request.chunk for request in chunks)
                self._track.begin(now, phase, sequences, prompt_tokens)
            self._record_level()

    def _record_level(self) -> None:
        if self._track is not None:
            held = self.kv.capacity_blocks - self.kv.available_blocks
            self._track.level(self._clock.now, held)

    def _start_prefill_step(self, chunks: list[Request], sequences: int) -> None:
        prompt_tokens = context_tokens = scanned_tokens = 0
        attended_tokens = weighted_tokens = 0.0
        for request in chunks:
            chunk, context = request.chunk, request.computed
            prompt_tokens += chunk
            context_tokens += context
            if context > scanned_tokens:
                scanned_tokens = context
            attended_tokens += chunk * (context + chunk / 2)
            weighted_tokens += self._time.attended(chunk, context)
        kv_read = self._batch.kv_tokens
        if sequences:
            scanned_tokens = max(scanned_tokens, self._batch.longest)
        self._step_seconds = seconds = self._time.with_prefill(
            prompt_tokens, weighted_tokens, scanned_tokens, sequences, kv_read
        )
        self._phase = "mixed" if sequences else "prefill"
        self._step_joules = self._energy.with_prefill(
            seconds, prompt_tokens, attended_tokens, context_tokens, sequences, kv_read
        )
        self._schedule(seconds)

    def _on_step_end(self, call: Call) -> None:
        if call is not self._step_end:
            return  # the run was cut
        if self._track is not None:
            self._track.end(self._clock.now, 1 if self._run is None else self._run_steps)
        self._between_steps = True
        if self._run is not None:
            self._grow_run(self._run_steps)
            self.joules["decode"] += self._energy.of_run(
                self._run, self._batch.sequences, self._batch.kv_tokens, self._run_steps
            )
            self._end_decode_steps(self._run_steps)
        else:
            self.joules[self._phase] += self._step_joules
            if self._batch.sequences:
                self._end_decode_steps(1)
            else:
                self.steps += 1
            for request in self._chunks:
                self._end_chunk(request)
        self._start_step()

    def _on_copy_asked(self, call: Call) -> None:
        self._copies.append(cast(tuple[float, object], call.value))
        self._wake()

    def _on_copied(self, call: Call) -> None:
        self._copies.popleft()
        self._copying = False
        self.joules["idle"] += self._energy.idle_w * self._step_seconds
        self._between_steps = True
        self._listener.on_copied(call.value)
        self._start_step()

    # --- prompts ---

    def _next_chunks(self) -> list[Request]:
        """Share the token budget out: to prompts that were begun, then to newly admitted ones."""
        budget = self._token_budget - self._batch.sequences
        chunks: list[Request] = []
        for request in self._prefilling:
            if budget <= 0:
                return chunks
            request.chunk = min(request.to_compute - request.computed, budget)
            budget -= request.chunk
            chunks.append(request)
        waiting = self._waiting
        passed_over: list[Request] = []
        while budget > 0 and waiting and len(self._running) < self._max_sequences:
            request = waiting[0]
            if not self.kv.has_room_for(request.to_compute):
                break
            waiting.popleft()
            if not (request.output_tokens or self._listener.reserves(request)):
                passed_over.append(request)
                continue
            self._admit(request)
            if request.pulling:
                continue
            request.chunk = min(request.to_compute - request.computed, budget)
            budget -= request.chunk
            chunks.append(request)
        waiting.extendleft(reversed(passed_over))
        return chunks

    def _admit(self, request: Request) -> None:
        """Take memory for a turn's prompt."""
        request.computed = self.kv.activate(
            request.conversation, request.to_compute, request.reusable_tokens
        )
        if request.started_s < 0.0:
            request.started_s = self._clock.now
            request.cached_tokens = request.computed
        self._running[request] = None
        if request.history_at >= 0 and self._listener.pulls(request):
            request.pulling = True
        else:
            self._prefilling.append(request)

    def _end_chunk(self, request: Request) -> None:
        request.computed += request.chunk
        if request.computed < request.to_compute:
            return
        self._prefilling.remove(request)
        if not request.output_tokens:
            del self._running[request]
            self._listener.on_prefilled(request)
            return
        request.generated += 1
        if request.generated == 1:
            self._listener.on_first_token(request)
        if request.generated == request.output_tokens:
            self._end_turn(request, request.computed)
        else:
            self._batch.join(request, request.computed)

    # --- turns that are prefilled elsewhere ---

    def _join_kv_arrived(self) -> None:
        while self._kv_arrived and len(self._running) < self._max_sequences:
            request = self._kv_arrived.popleft()
            request.started_s = self._clock.now
            request.cached_tokens = request.input_tokens - 1
            self._running[request] = None
            self._unseen.append(request)
            self._batch.join(request, request.input_tokens - 1)

    # --- decodes ---

    def _end_decode_steps(self, steps: int) -> None:
        self.steps += steps
        batch = self._batch
        batch.advance(steps)
        if self._unseen:
            for request in self._unseen:
                self._listener.on_first_token(request)
            self._unseen.clear()
        while (finished := batch.pop_finished()) is not None:
            self._end_turn(finished, batch.length(finished))

    def _end_turn(self, request: Request, length: int) -> None:
        del self._running[request]
        self._listener.on_turn_finished(request)
        self._let_go(request.conversation, length)
        self._listener.on_room_freed()
        self._listener.after_turn(request)

    # --- KV blocks of decodes ---

    def _grow_decodes(self) -> None:
        """Take the blocks that the next step needs; preempt the youngest turns if there are none.

        What was preempted does not fit again before others end, and whoever waits is behind it.
        Its place in the batch may serve a turn whose KV has arrived.
        """
        while True:
            if self._kv_arrived:
                self._join_kv_arrived()
            blocks = self._batch.blocks_now
            if not blocks:
                return
            if blocks <= self.kv.available_blocks:
                self.kv.grow(blocks)
                return
            # A prompt for another engine needs no more blocks and ends by itself, and blocks that
            # are being written to cannot be taken.
            self._preempt(
                next(r for r in reversed(self._running) if r.output_tokens and not r.pulling)
            )

    def _grow_run(self, steps: int) -> None:
        """Take the blocks that the run's first ``steps`` steps need."""
        if steps > self._run_grown:
            self.kv.grow(self._batch.blocks_for(self._run_grown, steps - self._run_grown))
            self._run_grown = steps
            self._record_level()

    def _plan_run(self) -> int:
        """Return how many decode steps can run before the batch or its memory changes."""
        return 1 if self._unseen else self._batch.steps_within(self.kv.available_blocks)

    def _preempt(self, request: Request) -> None:
        """Let a turn's KV be evicted; it waits at the head of the queue and computes it again."""
        del self._running[request]
        if request in self._prefilling:
            self._prefilling.remove(request)
            length = request.computed
            self.kv.give_back(self.kv.blocks(request.to_compute) - self.kv.blocks(length))
        else:
            self._batch.remove(request)
            length = self._batch.length(request)
            if request in self._unseen:
                self._unseen.remove(request)
        self._let_go(request.conversation, length)
        request.reusable_tokens = length if self._prefix_caching else 0
        request.history_at = -1
        self.preemptions += 1
        self._waiting.appendleft(request)
        self._listener.on_room_freed()

    def _let_go(self, conversation: int, tokens: int) -> None:
        """Make a conversation's KV idle; without prefix caching it is given back."""
        if self._prefix_caching and tokens:
            self.kv.park(conversation, tokens)
        else:
            self.kv.give_back(self.kv.blocks(tokens))

    def _cached(self, request: Request) -> int:
        """Return how much of the KV of a prompt that has not begun is here, or will be copied."""
        if request.history_at >= 0:
            return request.reusable_tokens
        return min(request.reusable_tokens, self.kv.idle_tokens(request.conversation))

    def _run_energy(self, elapsed: float) -> float:
        """Return the joules of a run up to ``elapsed``; the step under way counts pro rata."""
        run = self._run
        assert run is not None
        sequences = self._batch.sequences
        complete = min(run.steps_within(elapsed), self._run_steps)
        joules = self._energy.of_run(run, sequences, self._batch.kv_tokens, complete)
        if complete < self._run_steps:
            began, ends = run.elapsed(complete), run.elapsed(complete + 1)
            step = self._energy.of_run(run, sequences, self._batch.kv_tokens, complete + 1) - joules
            joules += step * (elapsed - began) / (ends - began)
        return joules
