"""Errors on the wire: status, code, body, Retry-After."""

from __future__ import annotations

import json
import logging

import grpc
import pytest

from predictors import errors, metrics
from predictors.protocol import faults
from predictors.protocol.faults import Fault, fault_of
from predictors.protocol.grpc.methods import status_details

Code = grpc.StatusCode

TABLE = [
    (errors.InvalidRequest("x"), 400, Code.INVALID_ARGUMENT, None, "invalid_input"),
    (errors.TooLarge("x"), 413, Code.RESOURCE_EXHAUSTED, "content_too_large", "too_large"),
    (errors.UnsupportedMedia("x"), 415, Code.INVALID_ARGUMENT, "unsupported_media_type",
     "invalid_input"),
    (errors.PromptTooLong("x"), 400, Code.INVALID_ARGUMENT, "context_length_exceeded",
     "invalid_input"),
    (errors.ContentRefused("x"), 400, Code.INVALID_ARGUMENT, "content_policy_violation",
     "content_policy"),
    (errors.Unauthorized("x"), 401, Code.UNAUTHENTICATED, "invalid_api_key", "unauthorized"),
    (errors.QuotaExceeded("x"), 429, Code.RESOURCE_EXHAUSTED, "rate_limit_exceeded", "quota"),
    (errors.Forbidden("x"), 403, Code.PERMISSION_DENIED, "forbidden", "forbidden"),
    (errors.Misdirected("x"), 421, Code.PERMISSION_DENIED, "misdirected_request", "forbidden"),
    (errors.NotFound("x"), 404, Code.NOT_FOUND, "not_found", "not_found"),
    (errors.Gone("x"), 410, Code.NOT_FOUND, "gone", "not_found"),
    (errors.NotSupported("x"), 501, Code.UNIMPLEMENTED, "not_supported", "not_supported"),
    (errors.Overloaded("x"), 503, Code.RESOURCE_EXHAUSTED, "server_overloaded", "queue_full"),
    (errors.ServerOverloaded("x"), 503, Code.RESOURCE_EXHAUSTED, "server_overloaded", "overloaded"),
    (errors.DeadlineExceeded("x"), 504, Code.DEADLINE_EXCEEDED, "deadline_exceeded", "deadline"),
    (errors.Cancelled("x"), 499, Code.CANCELLED, "client_closed_request", "cancelled"),
    (errors.NotReady("x"), 503, Code.UNAVAILABLE, "model_not_ready", "not_ready"),
    (errors.ShapeNotWarm("x"), 503, Code.UNAVAILABLE, "shape_not_warm", "not_ready"),
    (errors.Draining("x"), 503, Code.UNAVAILABLE, "server_draining", "draining"),
    (errors.EngineFailed("x"), 503, Code.UNAVAILABLE, "engine_failed", "engine_failed"),
    (errors.OutOfMemory("x"), 503, Code.RESOURCE_EXHAUSTED, "out_of_memory", "oom"),
    (errors.StepFailed("x"), 500, Code.INTERNAL, "job_failed", "poisoned"),
    (errors.CheckFailed("x"), 500, Code.INTERNAL, "check_failed", "internal"),
    (errors.SigningFailed("x"), 500, Code.INTERNAL, "signing_failed", "internal"),
    (errors.WakeTimeout("x", retry_after_s=1.0), 504, Code.UNAVAILABLE, "model_not_ready",
     "deadline"),
    (errors.UpstreamFailed("x"), 502, Code.UNAVAILABLE, "upstream_failed", "internal"),
    (errors.ServingError("x"), 500, Code.INTERNAL, "internal_error", "internal"),
]  # fmt: skip


def all_kinds(kind: type[errors.ServingError]) -> set[type[errors.ServingError]]:
    return {kind}.union(*(all_kinds(below) for below in kind.__subclasses__()))


@pytest.mark.parametrize(
    ("error", "status", "grpc_code", "code", "reason"), TABLE, ids=lambda x: type(x).__name__
)
def test_every_error_has_its_status_code_and_reason(
    error: errors.ServingError,
    status: int,
    grpc_code: grpc.StatusCode,
    code: str | None,
    reason: str,
) -> None:
    fault = fault_of(error)
    assert (fault.status, fault.grpc_code, fault.code, fault.reason) == (
        status,
        grpc_code,
        code,
        reason,
    )
    assert fault.message == "x"
    is_callers = status < 500 and status != 499
    expected = "invalid_request_error" if is_callers or status == 501 else "server_error"
    assert fault.type == ("rate_limit_error" if status == 429 else expected)


def test_every_class_of_the_error_tree_is_in_the_table() -> None:
    own = {kind for kind in all_kinds(errors.ServingError) if kind.__module__ == errors.__name__}
    assert {type(row[0]) for row in TABLE} == own
    assert {row[4] for row in TABLE} | {"ok"} == set(metrics.REASONS)


def test_a_subclass_is_rendered_as_its_base_class() -> None:
    class Special(errors.TooLarge):
        pass

    assert fault_of(Special("x")).status == 413


def test_v2_and_openai_bodies_carry_the_same_message() -> None:
    fault = fault_of(errors.InvalidRequest("width must be positive", param="width", row=2))
    assert json.loads(fault.v2_body()) == {"error": "row 2: width must be positive"}
    assert json.loads(fault.openai_body())["error"] == {
        "message": "row 2: width must be positive",
        "type": "invalid_request_error",
        "param": "width",
        "code": None,
    }


def test_an_unexpected_exception_is_logged_and_not_shown_to_the_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        fault = fault_of(KeyError("/mnt/models/secret"), request_id="r1")
    assert fault.message == "internal error; the log has more under request id r1"
    assert (fault.status, fault.reason, fault.param) == (500, "internal", None)
    assert "r1" in caplog.text
    assert "/mnt/models/secret" in caplog.text


def test_overload_is_503_or_429_as_set_and_has_retry_after() -> None:
    error = errors.Overloaded("full", retry_after_s=2.1)
    gateway, client = fault_of(error), fault_of(error, overload_status=429)
    assert (gateway.status, client.status) == (503, 429)
    assert client.type == "rate_limit_error"
    assert gateway.headers == client.headers == [("retry-after", "3")]
    assert fault_of(errors.Overloaded("full", retry_after_s=0.0)).retry_after_s == 1
    assert fault_of(errors.NotReady("x"), overload_status=429).status == 503


def test_only_temporary_failures_have_retry_after() -> None:
    found = {type(row[0]) for row in TABLE if "retry-after" in dict(fault_of(row[0]).headers)}
    assert found == {
        errors.Overloaded,
        errors.QuotaExceeded,
        errors.ServerOverloaded,
        errors.WakeTimeout,
        errors.NotReady,
        errors.Draining,
    }


def test_a_retry_that_costs_the_same_again_is_advised_against() -> None:
    found = {
        type(row[0])
        for row in TABLE
        if dict(fault_of(row[0]).headers).get("x-should-retry") == "false"
    }
    assert found == {
        errors.ServingError,
        errors.DeadlineExceeded,
        errors.StepFailed,
        errors.CheckFailed,
        errors.SigningFailed,
        errors.OutOfMemory,
        errors.UpstreamFailed,
    }
    assert dict(fault_of(KeyError("a bug")).headers)["x-should-retry"] == "false"


def test_an_unsupported_encoding_comes_with_those_that_are() -> None:
    error = errors.UnsupportedMedia("br", accept_encoding="gzip")
    assert fault_of(error).headers == [("accept-encoding", "gzip")]
    assert fault_of(errors.UnsupportedMedia("text/plain")).headers == []


def test_a_message_is_bounded_and_always_encodable() -> None:
    fault = fault_of(errors.NotFound("\ud800" + "x" * 10_000))
    assert len(fault.message) == faults.MAX_MESSAGE
    assert json.loads(fault.v2_body())["error"].startswith("?x")


def test_a_grpc_status_with_retry_info_is_what_googles_protos_say() -> None:
    fault = fault_of(errors.Overloaded("full", retry_after_s=300))
    any_type = b"type.googleapis.com/google.rpc.RetryInfo"
    duration = b"\x08\xac\x02"  # seconds = 300
    info = b"\x0a\x03" + duration
    packed = b"\x0a" + bytes([len(any_type)]) + any_type + b"\x12" + bytes([len(info)]) + info
    expected = b"\x08\x08" + b"\x12\x04full" + b"\x1a" + bytes([len(packed)]) + packed
    assert status_details(fault) == expected


def test_a_grpc_status_without_retry_after_has_no_retry_info() -> None:
    assert status_details(fault_of(errors.NotFound("no"))) == b"\x08\x05\x12\x02no"


def test_a_fault_without_param_says_null() -> None:
    fault = Fault(400, Code.INVALID_ARGUMENT, "x", "invalid_input", "t", None)
    assert json.loads(fault.openai_body())["error"]["param"] is None
