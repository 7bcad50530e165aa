"""A client of an OpenAI-compatible endpoint that notes when each token of a completion arrives."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, Positive
from conserve_gym.errors import ConServeGymError

if TYPE_CHECKING:
    import aiohttp

Prompt = list[int] | str

# Frequent words, each about one token of any tokenizer.
# fmt: off
WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world",
    "school", "state", "family", "student", "group", "country", "problem", "hand", "part", "place",
    "case", "week", "company", "system", "program", "question", "work", "number", "night",
)
# fmt: on


class EndpointError(ConServeGymError):
    """An endpoint that cannot be reached, fails, or does not stream tokens."""


@dataclass(frozen=True, config=STRICT)
class Endpoint:
    """How to speak to an endpoint.

    Attributes:
        url: Its address, without ``/v1/completions``.
        model: Name that it serves the model by.
        api_key: Sent as a bearer token, if there is one.
        timeout_s: Silence after which it counts as dead.
        prompts: Whether prompts are sent as token ids, whose number is exact, or as text.
        token_ids: First and last id of which prompts are drawn; ordinary tokens of the model.
        body: Further fields of every request.

    Raises:
        ValueError: The ids are not a range.
    """

    url: str
    model: str
    api_key: str | None
    timeout_s: Positive
    prompts: Literal["token_ids", "text"]
    token_ids: tuple[NonNegativeInt, NonNegativeInt]
    body: dict[str, Any]

    def __post_init__(self) -> None:
        """Check the range of ids."""
        first, last = self.token_ids
        if not last > first:
            raise ValueError(f"endpoint.token_ids={[first, last]} is not a range of ids")


@plain_dataclass
class Completion:
    """What has arrived of a streamed completion; times are those of the event loop.

    Attributes:
        sent_s: When the request was sent.
        token_s: When each token arrived.
        prompt_tokens: Length of the prompt as the endpoint counts it, once it has ended.
        cached_tokens: What of it was in the KV cache; None if the endpoint does not say.
        output_tokens: Tokens generated as the endpoint counts them.
    """

    sent_s: float = 0.0
    token_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def first_token_ms(self) -> float:
        """Milliseconds from sending to the first token."""
        return 1e3 * (self.token_s[0] - self.sent_s)


class Prompts:
    """Draws prompts that no cache knows.

    Args:
        endpoint: Says of what they are made.
        seed: Of the draws.
    """

    def __init__(self, endpoint: Endpoint, seed: int | None = None) -> None:
        """Take a word for a token until told better."""
        self._endpoint = endpoint
        self._random = random.Random(seed)
        self._tokens_per_word = 1.0

    def draw(self, tokens: int) -> Prompt:
        """Return a prompt of so many tokens; of text, about so many."""
        if self._endpoint.prompts == "token_ids":
            first, last = self._endpoint.token_ids
            return [self._random.randint(first, last) for _ in range(tokens)]
        words = max(1, round(tokens / self._tokens_per_word))
        return " ".join(self._random.choices(WORDS, k=words))

    def learn(self, prompt: Prompt, tokens: int) -> None:
        """Take the length of text from how many tokens a prompt was found to have."""
        if isinstance(prompt, str):
            self._tokens_per_word = tokens / len(prompt.split())


def joined(prefix: Prompt, tail: Prompt) -> Prompt:
    """Return a prompt that goes on after another one."""
    if isinstance(prefix, str):
        return f"{prefix} {tail}"
    assert not isinstance(tail, str)
    return prefix + tail


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks together; the first failure ends all of them and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


class Client:
    """Streams completions; used as an asynchronous context manager.

    Args:
        endpoint: Where and how.

    Raises:
        EndpointError: aiohttp is not installed.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        """Find the library."""
        try:
            import aiohttp
        except ImportError:
            raise EndpointError(
                "measuring an endpoint needs aiohttp: pip install 'conserve-gym[router]'"
            ) from None
        self._aiohttp = aiohttp
        self.endpoint = endpoint
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        """Open the session."""
        key = self.endpoint.api_key
        self._session = self._aiohttp.ClientSession(
            # Servers that close a connection after a stream would make a reused one fail.
            connector=self._aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=self._aiohttp.ClientTimeout(
                total=None,
                sock_connect=self.endpoint.timeout_s,
                sock_read=self.endpoint.timeout_s,
            ),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the session."""
        assert self._session is not None
        await self._session.close()

    async def complete(
        self, prompt: Prompt, output_tokens: int, into: Completion | None = None
    ) -> Completion:
        """Stream a completion of exactly so many tokens.

        Args:
            prompt: Prompt.
            output_tokens: Tokens to generate.
            into: Filled while tokens arrive.

        Raises:
            EndpointError: It does not do so.
        """
        completion = into or Completion()
        assert self._session is not None
        url = self.endpoint.url.rstrip("/") + "/v1/completions"
        body = {
            "model": self.endpoint.model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.endpoint.body,
        }
        clock = asyncio.get_running_loop().time
        completion.sent_s = clock()
        try:
            async with self._session.post(url, json=body) as response:
                if response.status != 200:
                    answer = " ".join((await response.text(errors="replace")).split())
                    raise EndpointError(f"{url}: HTTP {response.status}: {answer[:200]}")
                rest = b""
                async for received in response.content.iter_any():
                    now = clock()
                    *lines, rest = (rest + received).split(b"\n")
                    for line in lines:
                        _note(completion, line, now, url)
        except self._aiohttp.InvalidURL:
            raise EndpointError(f"endpoint.url={self.endpoint.url!r} is no URL") from None
        except TimeoutError:
            raise EndpointError(f"{url}: silent for {self.endpoint.timeout_s:g} s") from None
        except (self._aiohttp.ClientError, OSError) as error:
            raise EndpointError(f"{url}: {error}") from None
        _check(completion, output_tokens, url)
        return completion


def _note(completion: Completion, line: bytes, now: float, url: str) -> None:
    """Note what a line of a server-sent event says."""
    if not line.startswith(b"data:"):
        return
    data = line[5:].strip()
    if data == b"[DONE]":
        return
    try:
        event = json.loads(data)
        if "error" in event:
            raise EndpointError(f"{url}: {json.dumps(event['error'])[:200]}")
        for choice in event.get("choices", ()):
            # Some servers say in an event of its own, without text, that they have finished.
            if choice.get("text") or not choice.get("finish_reason"):
                completion.token_s.append(now)
        usage = event.get("usage")
        if usage:
            completion.prompt_tokens = usage["prompt_tokens"]
            completion.output_tokens = usage["completion_tokens"]
            details = usage.get("prompt_tokens_details") or {}
            completion.cached_tokens = details.get("cached_tokens")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, EndpointError):
            raise
        raise EndpointError(f"{url}: streams {data[:80]!r}, which is no completion") from None


def _check(completion: Completion, output_tokens: int, url: str) -> None:
    events, said = len(completion.token_s), completion.output_tokens
    if not events:
        raise EndpointError(f"{url}: streamed no token")
    if said is not None and events < 0.9 * said:
        raise EndpointError(
            f"{url}: streamed {said} tokens in {events} events; steps are measured by their tokens"
        )
    if max(events, said or 0) < output_tokens:
        raise EndpointError(
            f"{url}: stopped after {events} of {output_tokens} tokens; a field of endpoint.body "
            "(ignore_eos) must make it go on"
        )
