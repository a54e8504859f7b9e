"""`grpc-status-details-bin` with a `google.rpc.RetryInfo`, so that clients that honour it wait.
Knows faults only.

The two messages (google/rpc/status.proto, error_details.proto) are four fields deep: written here
by hand rather than with another dependency.
"""

from __future__ import annotations

from predictors.protocol.faults import Fault

RETRY_INFO = b"type.googleapis.com/google.rpc.RetryInfo"


def status_details(fault: Fault) -> bytes:
    """A serialised `google.rpc.Status`: code, message, and a RetryInfo if the fault has one."""
    code: int = fault.grpc_code.value[0]
    status = _number(1, code) + _field(2, fault.message.encode("utf-8"))
    if fault.retry_after_s is not None:
        duration = _number(1, fault.retry_after_s)  # google.protobuf.Duration.seconds
        retry_info = _field(1, duration)
        status += _field(3, _field(1, RETRY_INFO) + _field(2, retry_info))  # google.protobuf.Any
    return status


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
