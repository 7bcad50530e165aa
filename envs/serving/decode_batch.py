"""The sequences that decode together on one engine.

All of them gain one token a step, so counters stand for the whole batch: a sequence's length is its
shift plus the count of steps, and the sequences that need a new KV block in a step are those of one
phase. Nothing is done per token.
"""

from __future__ import annotations

import heapq

from conserve_gym.envs.serving.request import Request


class DecodeBatch:
    """Counters of a batch.

    Args:
        block_tokens: Tokens in a KV block.

    Attributes:
        sequences: How many decode.
        kv_tokens: Sum of their lengths, which is what the next step reads.
    """

    def __init__(self, block_tokens: int) -> None:
        """Start empty."""
        self.sequences = 0
        self.kv_tokens = 0
        self._block_tokens = block_tokens
        self._steps = 0  # ever made
        self._finish: list[tuple[int, int, Request]] = []  # heap of (last step, tie-break, turn)
        # Heap of (-shift, tie-break), longest first: who is longer stays longer. Entries of those
        # that have left are thrown away when they come to the top.
        self._longest: list[tuple[int, int]] = []
        self._left: set[int] = set()
        self._ties = 0
        self._by_phase = [0] * block_tokens  # sequences by shift modulo block

    def join(self, request: Request, length: int) -> None:
        """Let a turn decode, with ``length`` tokens in the KV pool."""
        request.shift = length - self._steps
        self.sequences += 1
        self.kv_tokens += length
        self._by_phase[request.shift % self._block_tokens] += 1
        last_step = self._steps + request.output_tokens - request.generated
        self._ties += 1
        heapq.heappush(self._finish, (last_step, self._ties, request))
        heapq.heappush(self._longest, (-request.shift, self._ties))

    @property
    def longest(self) -> int:
        """Length of the longest sequence; there must be one."""
        longest, left = self._longest, self._left
        while longest[0][1] in left:
            left.remove(heapq.heappop(longest)[1])
        return self._steps - longest[0][0]

    def advance(self, steps: int) -> None:
        """Give every sequence ``steps`` more tokens; none may pass its last one."""
        self._steps += steps
        self.kv_tokens += steps * self.sequences

    def pop_finished(self) -> Request | None:
        """Take a turn that has its last token out of the batch, if there is one."""
        if self._finish and self._finish[0][0] <= self._steps:
            _, tie, request = heapq.heappop(self._finish)
            self._leave(request, tie)
            return request
        return None

    def remove(self, request: Request) -> None:
        """Take a turn that has not finished out of the batch, and count what it generated."""
        index = next(i for i, entry in enumerate(self._finish) if entry[2] is request)
        last_step, tie, _ = self._finish.pop(index)
        heapq.heapify(self._finish)
        request.generated = request.output_tokens - (last_step - self._steps)
        self._leave(request, tie)

    def length(self, request: Request) -> int:
        """Return the tokens in the KV pool of a turn that decodes or has just left."""
        return request.shift + self._steps

    @property
    def blocks_now(self) -> int:
        """Blocks that the next step takes."""
        return self._by_phase[-self._steps % self._block_tokens]

    def blocks_for(self, first_step: int, steps: int) -> int:
        """Return blocks that the batch needs for ``steps`` steps, ``first_step`` from now on.

        A sequence takes a block when its length is a multiple of the block size.
        """
        cycles, rest = divmod(steps, self._block_tokens)
        blocks = cycles * self.sequences
        start = self._steps + first_step
        for step in range(start, start + rest):
            blocks += self._by_phase[-step % self._block_tokens]
        return blocks

    def steps_within(self, blocks: int) -> int:
        """Return how many steps can be made before a turn finishes or ``blocks`` run out.

        The first step's blocks are taken already.
        """
        steps = self._finish[0][0] - self._steps
        size = self._block_tokens
        if (steps // size + 1) * self.sequences <= blocks:
            return steps
        cycles = min((steps - 1) // size, blocks // self.sequences)
        planned = 1 + cycles * size
        left = blocks - cycles * self.sequences
        while planned < steps:
            left -= self._by_phase[-(self._steps + planned) % size]
            if left < 0:
                break
            planned += 1
        return planned

    def _leave(self, request: Request, tie: int) -> None:
        self.sequences -= 1
        if self.sequences:
            self._left.add(tie)
        else:
            self._left.clear()
            self._longest.clear()
        self.kv_tokens -= self.length(request)
        self._by_phase[request.shift % self._block_tokens] -= 1
