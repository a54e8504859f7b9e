"""Checks the API key of each gRPC call before its message is read. Probes need none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any

import grpc

from predictors.errors import Unauthorized
from predictors.protocol.addresses import peer_address
from predictors.protocol.call import Call
from predictors.protocol.callers import Callers
from predictors.protocol.faults import fault_of
from predictors.protocol.grpc.methods import abort, start_call
from predictors.protocol.grpc.open_calls import OpenCalls
from predictors.protocol.grpc.unread_answers import peer_of_task
from predictors.protocol.key_file import ApiKey
from predictors.protocol.keys import KEY_HEADERS, ApiKeys
from predictors.protocol.outcomes import log_refused_key

OPEN_METHODS = frozenset({"ServerLive", "ServerReady", "ModelReady"})
"""Of the inference service: probes, which need no key."""
_HEALTH = "/grpc.health.v1.Health/"

_key: ContextVar[ApiKey | None] = ContextVar("key", default=None)
"""The key of the call that the current task serves."""


def key_checks(callers: Callers, calls: OpenCalls) -> Sequence[grpc.aio.ServerInterceptor]:
    """The interceptors of a server; none where no key is needed."""
    return () if callers.keys is None else (KeyCheck(callers, callers.keys, calls),)


def adopt_key(callers: Callers, call: Call) -> None:
    """Make the call that of the key which the interceptor found, if there is one."""
    key = _key.get()
    if key is not None:
        for name in KEY_HEADERS:
            call.pop(name, None)
        callers.adopt(call, key)


class KeyCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without a valid key. Event loop only."""

    def __init__(self, callers: Callers, keys: ApiKeys, calls: OpenCalls) -> None:
        self._callers = callers
        self._calls = calls
        self._keys = keys

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """The handler of the call, or one that refuses it. Runs in the task of the call."""
        _key.set(None)
        method: str = details.method
        if method.startswith(_HEALTH) or method.rpartition("/")[2] in OPEN_METHODS:
            return await continuation(details)
        pairs = details.invocation_metadata or ()
        headers = {name: value for name, value in pairs if isinstance(value, str)}
        try:
            _key.set(self._keys.check(headers))
        except Unauthorized as error:
            return self._refusing(error)
        return await continuation(details)

    def _refusing(self, error: Unauthorized) -> Any:
        # a handler of streams is called before any message is read
        async def refuse(messages: object, context: Any) -> AsyncIterator[Any]:
            self._calls.begin("", context)
            call = start_call(context)
            self._callers.name(call, peer_address(peer_of_task.get()))
            log_refused_key(call, "v2_grpc")
            await abort(context, fault_of(error), call)
            yield None

        return grpc.stream_stream_rpc_method_handler(refuse)
