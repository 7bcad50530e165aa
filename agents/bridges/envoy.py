"""An endpoint picker for Envoy: it answers external processing, and lets Envoy carry the turns.

Envoy asks over gRPC (``envoy.service.ext_proc.v3``) where each request goes, and is told by the
headers of the Gateway API Inference Extension and llm-d: ``x-gateway-destination-endpoint`` is the
engine that decodes, ``x-prefiller-host-port`` the one that prefills for it. Without the second, the
engine, or llm-d's sidecar in front of it, computes the prompt itself. Source: proposals/004 of
kubernetes-sigs/gateway-api-inference-extension, and disaggregation in llm-d/llm-d-router (2026).

Bodies of requests may be sent buffered or full duplex; those of responses streamed or full duplex.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, cast
from urllib.parse import urlsplit

import grpc
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    ImmediateResponse,
    ProcessingRequest,
    ProcessingResponse,
    StreamedBodyResponse,
    TrailersResponse,
)
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import (
    ExternalProcessorServicer,
    add_ExternalProcessorServicer_to_server,
)
from envoy.type.v3.http_status_pb2 import HttpStatus

from conserve_gym.agents.bridges.overheard import Overheard
from conserve_gym.agents.router import api, sse
from conserve_gym.agents.router.books import Turn
from conserve_gym.agents.router.errors import ApiError
from conserve_gym.agents.router.router import Router
from conserve_gym.agents.router.serve import stop_signal
from conserve_gym.agents.router.spec import RouterSpec

DECODER = "x-gateway-destination-endpoint"
PREFILLER = "x-prefiller-host-port"

# The largest part of a body that Envoy takes in one message (the extension's own pickers, 62 KB).
_PART = 62_000
_DUPLEX = ProcessingMode.FULL_DUPLEX_STREAMED


class EndpointPicker(ExternalProcessorServicer):  # type: ignore[misc]
    """Answers Envoy; one call is one request and its response.

    Args:
        router: Keeps books and engines; its own way to serve turns is not used.
    """

    def __init__(self, router: Router) -> None:
        """Take the router."""
        self._router = router

    async def Process(  # noqa: N802 - the protocol's name
        self,
        request_iterator: AsyncIterator[ProcessingRequest],
        context: grpc.aio.ServicerContext[ProcessingRequest, ProcessingResponse],
    ) -> None:
        """Follow a request and its response; a turn that has no end here is given up."""
        async with AsyncExitStack() as stack:
            exchange = _Exchange(self._router, stack)
            try:
                async for message in request_iterator:
                    for answer in await exchange.answers(message):
                        await context.write(answer)
            except ApiError as error:
                await context.write(_refusal(error))


class _Exchange:
    """One request and its response."""

    def __init__(self, router: Router, stack: AsyncExitStack) -> None:
        self._router = router
        self._books = router.books
        self._stack = stack  # of the turn and its conversation
        self._headers: dict[str, str] = {}
        self._duplex = self._duplex_response = False
        self._body = bytearray()
        self._turn: Turn | None = None
        self._answer: Overheard | None = None

    async def answers(self, message: ProcessingRequest) -> list[ProcessingResponse]:
        """Return what Envoy is told of a message."""
        kind = message.WhichOneof("request")
        if kind == "request_headers":
            self._headers = _headers(message.request_headers.headers)
            self._duplex = message.protocol_config.request_body_mode == _DUPLEX
            self._duplex_response = message.protocol_config.response_body_mode == _DUPLEX
            if message.request_headers.end_of_stream:
                return [_headers_response("request_headers", *self._anywhere())]
            # Full duplex, headers are answered when the body is known; else Envoy waits for it.
            return [] if self._duplex else [_headers_response("request_headers")]
        if kind == "request_body":
            self._body += message.request_body.body
            if len(self._body) > self._router.spec.limits.body_bytes:
                raise ApiError(413, "the body is too large", "too_large")
            return await self._routed() if message.request_body.end_of_stream else []
        if kind == "request_trailers":
            trailers = ProcessingResponse(request_trailers=TrailersResponse())
            return [*(await self._routed() if self._duplex else ()), trailers]
        if kind == "response_headers":
            return [self._begun(_headers(message.response_headers.headers))]
        if kind == "response_body":
            body = message.response_body
            await self._passed(body.body, last=body.end_of_stream)
            return (
                _body_responses("response_body", body.body, body.end_of_stream)
                if (self._duplex_response)
                else [ProcessingResponse(response_body=BodyResponse())]
            )
        await self._passed(b"", last=True)
        return [ProcessingResponse(response_trailers=TrailersResponse())]

    async def _routed(self) -> list[ProcessingResponse]:
        """Place the turn, and say where it goes."""
        destination = await self._destination()
        if not self._duplex:
            mutation, metadata = _mutation(*destination)
            common = CommonResponse(header_mutation=mutation)
            response = ProcessingResponse(request_body=BodyResponse(response=common))
            response.dynamic_metadata.update(metadata)
            return [response]
        body = bytes(self._body)
        return [
            _headers_response("request_headers", *destination),
            *_body_responses("request_body", body, True),
        ]

    async def _destination(self) -> tuple[str, str]:
        path = self._headers.get(":path", "").partition("?")[0]
        if path not in (api.CHAT, api.TEXT):
            return self._anywhere()
        try:
            body = api.checked(path, json.loads(self._body))
        except (ValueError, RecursionError):
            raise ApiError(400, "the body is no JSON", "invalid_json") from None
        if "kv_transfer_params" in body:  # they make an engine connect to any address
            raise ApiError(400, "kv_transfer_params are not for clients", "not_for_clients")
        known = self._books.find(self._headers, body)
        if known is not None and known.lock.locked() and known.placement is not None:
            # Envoy does not wait for the turn before it to end: it goes along, and is not counted.
            return self._address(known.placement.decode_at), ""
        conversation = await self._stack.enter_async_context(
            self._books.conversation(self._headers, body)
        )
        turn = await self._stack.enter_async_context(self._books.turn(conversation, body))
        self._turn = turn
        prefiller = turn.placement.prefill_at
        remote = turn.is_offloaded and self._router.runtime.up[prefiller]
        if turn.is_offloaded and not remote:
            turn.reason = f"{self._router.engines[prefiller].name} is down"
        prefill_at = self._address(prefiller) if remote else ""
        return self._address(turn.placement.decode_at), prefill_at

    def _anywhere(self) -> tuple[str, str]:
        """Return an engine for what is no turn."""
        for engine in self._router.runtime.fleet.decoders:
            if self._router.runtime.up[engine]:
                return self._address(engine), ""
        raise ApiError(503, "no engine that decodes is up", "no_engine", retry_after_s=5)

    def _address(self, engine: int) -> str:
        return urlsplit(self._router.spec.engines[engine].url).netloc

    def _begun(self, headers: Mapping[str, str]) -> ProcessingResponse:
        """Look at the response's headers, and add the receipt."""
        if self._turn is None:
            return _headers_response("response_headers")
        if headers.get(":status") == "200":
            streamed = "text/event-stream" in headers.get("content-type", "")
            self._answer = Overheard(streamed=streamed)
        receipt = self._books.receipt(self._turn)
        # Whoever moves the KV cache does not tell.
        receipt.pop("x-conserve-kv-transfers")
        mutation = HeaderMutation(set_headers=[_header(*one) for one in receipt.items()])
        common = CommonResponse(header_mutation=mutation)
        return ProcessingResponse(response_headers=HeadersResponse(response=common))

    async def _passed(self, part: bytes, *, last: bool) -> None:
        """Write down what a part of the response tells."""
        turn, answer = self._turn, self._answer
        if turn is None or answer is None or turn.finished:
            return
        try:
            answer.listen(part)
            usage = answer.end() if last else {}
        except sse.StreamError:  # no answer of an engine: the turn is given up in the end
            self._answer = None
            return
        if answer.begun and not turn.begun:
            self._books.first_token(turn)
        if last and answer.begun:
            self._books.finish(turn, usage)
            await self._stack.aclose()  # the conversation's next turn may come


def _headers(given: Any) -> dict[str, str]:
    """Return headers by name; names are in small letters."""
    return {one.key: one.raw_value.decode(errors="replace") or one.value for one in given.headers}


def _header(name: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(
        header=HeaderValue(key=name, raw_value=value.encode()),
        append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def _mutation(decoder: str, prefiller: str) -> tuple[HeaderMutation, dict[str, Any]]:
    """Return headers and metadata of a destination; a client's own choice goes."""
    chosen = {DECODER: decoder} | ({PREFILLER: prefiller} if prefiller else {})
    mutation = HeaderMutation(
        set_headers=[_header(*one) for one in chosen.items()],
        remove_headers=[] if prefiller else [PREFILLER],
    )
    return mutation, {"envoy.lb": {DECODER: decoder}}


def _headers_response(kind: str, *destination: str) -> ProcessingResponse:
    if not destination:
        return ProcessingResponse(**{kind: HeadersResponse()})
    mutation, metadata = _mutation(*destination)
    common = CommonResponse(header_mutation=mutation)
    response = ProcessingResponse(**{kind: HeadersResponse(response=common)})
    response.dynamic_metadata.update(metadata)
    return response


def _body_responses(kind: str, body: bytes, last: bool) -> list[ProcessingResponse]:
    """Return a body as it came, in parts."""
    starts = range(0, max(len(body), 1), _PART)
    responses = []
    for start in starts:
        ends = last and start == starts[-1]
        part = StreamedBodyResponse(body=body[start : start + _PART], end_of_stream=ends)
        common = CommonResponse(body_mutation=BodyMutation(streamed_response=part))
        responses.append(ProcessingResponse(**{kind: BodyResponse(response=common)}))
    return responses


def _refusal(error: ApiError) -> ProcessingResponse:
    headers = {"content-type": "application/json"}
    if error.retry_after_s:
        headers["retry-after"] = str(error.retry_after_s)
    mutation = HeaderMutation(set_headers=[_header(*one) for one in headers.items()])
    return ProcessingResponse(
        immediate_response=ImmediateResponse(
            status=HttpStatus(code=cast(Any, error.status)), headers=mutation, body=error.body
        )
    )


async def start(router: Router) -> tuple[grpc.aio.Server, str]:
    """Start an endpoint picker.

    Args:
        router: It has been entered.

    Returns:
        The server, and the address it listens on.

    Raises:
        OSError: The address cannot be listened on.
    """
    server = grpc.aio.server()
    add_ExternalProcessorServicer_to_server(EndpointPicker(router), server)
    host = router.spec.host
    try:
        port = server.add_insecure_port(f"{host}:{router.spec.port}")
    except RuntimeError as error:
        raise OSError(str(error)) from None
    await server.start()
    return server, f"{host}:{port}"


def serve(spec: RouterSpec) -> None:
    """Pick endpoints until SIGTERM or SIGINT; the address is printed when it is open.

    Raises:
        RouterError: It cannot start as configured.
        OSError: The address cannot be listened on.
    """
    asyncio.run(_serve(spec))


async def _serve(spec: RouterSpec) -> None:
    stop = stop_signal()
    async with Router(spec) as router:
        server, address = await start(router)
        print(f"picking endpoints on {address}", flush=True)
        await stop.wait()
        await server.stop(5.0)
