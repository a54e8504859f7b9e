"""`ModelStreamInfer`, Triton's extension of the inference service: requests on one stream, each
with one response or several.

KServe's messages lack its response, and no process can have Triton's beside them, since both
register the same names. But a request is KServe's `ModelInferRequest` to the byte, and a response
wraps its `ModelInferResponse` in two fields, which are written here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from predictors.errors import ServingError
from predictors.observe import logs
from predictors.protocol.call import REQUEST_ID_HEADER, Call
from predictors.protocol.faults import Fault
from predictors.protocol.grpc.arriving import StreamMessages
from predictors.protocol.grpc.methods import RawMessage, bytes_field, set_request_id, start_call
from predictors.protocol.grpc.reading import Write
from predictors.protocol.kserve_sdk import pb
from predictors.protocol.outcomes import RequestRecord
from predictors.protocol.registry import Registry
from predictors.protocol.serves import Served, StreamsInference
from predictors.protocol.v2.stream_responses import ERROR, FINAL, METHOD, RESPONSE
from predictors.protocol.v2.values import V2Request, V2Response
from predictors.protocol.v2.wire_proto import id_of

if TYPE_CHECKING:
    from predictors.protocol.v2.grpc import InferenceMethods

EMPTY_FINAL = "triton_enable_empty_final_response"
"""Parameter of a request, ignored: the last response here is never empty."""
MOST_REQUESTS = 16
"""Requests of one stream that are answered at a time; the next is read when one is done."""


class StreamMethod:
    """The method; event loop only."""

    def __init__(self, registry: Registry, methods: InferenceMethods) -> None:
        self._registry = registry
        self._methods = methods

    async def model_stream_infer(
        self, messages: StreamMessages, context: Any, write: Write
    ) -> None:
        """gRPC cancels it when the client leaves or its deadline passes, and with it every request
        of the stream that is not answered."""
        set_request_id(context, start_call(context))
        places, number = asyncio.Semaphore(MOST_REQUESTS), 0
        responses, refusal = ResponseWriter(write), None

        def end(task: asyncio.Task[None]) -> None:
            places.release()
            messages.answered()

        async with asyncio.TaskGroup() as group:
            while await places.acquire():  # first: a message that is read must count at once
                try:
                    message = await anext(messages, None)
                except ServingError as error:  # what was read before is answered
                    refusal = error
                    break
                if message is None:
                    break
                number += 1
                answering = self._answer(message, context, responses, number)
                group.create_task(answering).add_done_callback(end)
        if refusal is not None:
            raise refusal

    async def _answer(
        self, message: RawMessage, context: Any, responses: ResponseWriter, number: int
    ) -> None:
        """Answer one request of the stream; a failure is a response as well."""
        call, identity = _call_of(context, number), ""

        async def fail(fault: Fault) -> None:
            await responses.fail(fault.message, identity or call.request_id)

        async def work(record: RequestRecord) -> None:
            nonlocal identity
            raw, left_s = message.release(), context.time_remaining()
            try:
                await self._infer(record, raw, call, left_s, responses)
            except Exception:
                identity = id_of(raw)  # the message itself is not kept while a refusal waits
                raise

        await self._methods.recorded(METHOD, call, context, work, fail)

    async def _infer(
        self,
        record: RequestRecord,
        raw: bytes,
        call: Call,
        left_s: float | None,
        responses: ResponseWriter,
    ) -> None:
        methods = self._methods
        with methods.charged(raw):
            model = methods.admit(record, raw, call, left_s)
            try:
                values = _as_streamed(await methods.decode(raw, model, call))
                async with aclosing(_responses(model, values, call)) as answers:
                    async for answer in answers:
                        parameters = {**answer.parameters, FINAL: answer.is_final}
                        marked = replace(answer, parameters=parameters)
                        await responses.write(await methods.encode(marked, values, call))
            finally:
                self._registry.end_request()


def _call_of(context: Any, number: int) -> Call:
    """The call of the stream's request with that number, from 1. Each has an id of its own."""
    call = start_call(context)
    if number > 1 and REQUEST_ID_HEADER in call:
        call.request_id = f"{call.request_id}-{number}"
        logs.request_id.set(call.request_id)
    return call


def _as_streamed(values: V2Request) -> V2Request:
    parameters = {name: x for name, x in values.parameters.items() if name != EMPTY_FINAL}
    return replace(values, parameters=parameters, is_streamed=True)


async def _responses(model: Served, values: V2Request, call: Call) -> AsyncGenerator[V2Response]:
    if not isinstance(model, StreamsInference):
        yield await model.infer(values, call)
        return
    async with aclosing(model.infer_stream(values, call)) as responses:
        async for response in responses:
            yield response


class ResponseWriter:
    """The responses of one stream, which its requests write in any order. Event loop only."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._lock = asyncio.Lock()  # gRPC takes one message at a time

    async def write(self, response: Any) -> None:
        """Send a `ModelInferResponse`. Waits while the client does not read."""
        await self._send(bytes_field(RESPONSE, response.SerializeToString()))

    async def fail(self, message: str, identity: str) -> None:
        """Send why the request with that id failed."""
        named = pb.ModelInferResponse(id=identity).SerializeToString()
        await self._send(bytes_field(ERROR, message.encode()) + bytes_field(RESPONSE, named))

    async def _send(self, raw: bytes) -> None:
        async with self._lock:
            await self._write(raw)
