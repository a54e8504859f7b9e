"""Failures of gRPC calls that need no model, and of whole streams. Each becomes the status of its
call; a refusal is counted, logged and paced as that of an inference is.
"""

from __future__ import annotations

import logging

from predictors.observe.sampling import SampledLines
from predictors.protocol.addresses import peer_address
from predictors.protocol.call import Call
from predictors.protocol.faults import Fault, fault_of
from predictors.protocol.grpc.key_check import adopt_key
from predictors.protocol.grpc.unread_answers import peer_of_task
from predictors.protocol.outcomes import REFUSED, RequestRecord
from predictors.protocol.refusal_pace import PACED
from predictors.protocol.registry import Registry

INFERENCE = frozenset({"ModelInfer", "ModelStreamInfer"})
OTHER = "other"
"""The label `operation` of refused calls of all other methods, of those that ended before their
message was there, and of methods that are not there. Answered ones are not counted."""

access = logging.getLogger("predictors.access")
_sampled = SampledLines(access)


class RefusedCalls:
    """The failed calls of one server. Event loop only."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._logs = registry.settings.server.access_log

    async def fault(self, error: Exception, method: str, call: Call) -> Fault:
        """The failure that ends this call, once it may be sent. Of `PACED` ones a caller may get
        any number, so that they are counted and paced."""
        if isinstance(error, PACED):
            self._registry.callers.name(call, peer_address(peer_of_task.get()))
            adopt_key(self._registry.callers, call)
            operation = "infer" if method in INFERENCE else OTHER
            record = RequestRecord("v2_grpc", operation, call)
            try:
                await self._registry.refusal_pace.wait(error, call.caller)
            finally:
                record.end(error.reason)
                self.log(method, record, error.reason, call)
        return fault_of(error, request_id=call.request_id)

    def log(self, method: str, record: RequestRecord, reason: str, call: Call) -> None:
        """Write the access line of a call, of an answered one too; refusals are sampled."""
        left_out = _sampled.admit(reason) if reason in REFUSED else 0
        if self._logs and left_out is not None:
            log_fields = {
                "model": record.model,
                "reason": reason,
                "total_ms": round(record.elapsed_s * 1000, 1),
                "request_id": call.request_id,
            }
            more = {"left_out": left_out} if left_out else {}
            line = f"{method} %s %s %.1f ms %s"
            access.info(line, *log_fields.values(), extra={"method": method, **log_fields, **more})
