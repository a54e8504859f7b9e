"""Conversion between KServe's request and response objects and V2 values.

It is used when a predictor runs under KServe's own server; the routes of this package make V2
values themselves.
"""

from __future__ import annotations

from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.kserve_sdk import InferInput, InferOutput, InferRequest, InferResponse
from predictors.protocol.v2.content_types import check_request
from predictors.protocol.v2.values import Scalar, Tensor, V2Request, V2Response


def from_kserve(request: InferRequest) -> V2Request:
    """The request as values; raises `InvalidRequest` for BYTES that are neither text nor bytes."""
    return V2Request(
        model=request.model_name,
        id=request.id or "",
        inputs=tuple(_tensor(x) for x in request.inputs),
        parameters=_request_parameters(request.parameters),
        binary_default=bool(request.use_binary_outputs),
    )


def to_kserve(response: V2Response, request: V2Request) -> InferResponse:
    """The response as KServe's object, with raw outputs where `request` asks for them."""
    return InferResponse(
        response_id=response.id or request.id or "",
        model_name=response.model,
        infer_outputs=[
            InferOutput(
                t.name,
                list(t.shape),
                t.datatype,
                data=list(t.data),
                parameters=dict(t.parameters) or None,
            )
            for t in response.outputs
        ],
        parameters=dict(response.parameters) or None,
        use_binary_outputs=request.binary_default,
    )


def _tensor(tensor: InferInput) -> Tensor:
    values = tensor.as_numpy().reshape(-1).tolist()
    text = bool(values) and isinstance(values[0], str)
    if tensor.datatype == "BYTES":
        values = [_bytes(tensor.name, x) for x in values]
    return Tensor(
        tensor.name,
        tensor.datatype,
        tuple(tensor.shape),
        values,
        _parameters(tensor.parameters),
        text=text,
    )


def _bytes(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise InvalidRequest(
        f"input {name!r} holds something that is neither text nor bytes", param=name
    )


def _request_parameters(raw: Any) -> dict[str, Scalar]:
    found = _parameters(raw)
    if "content_type" in found:
        check_request(found)
    return found


def _parameters(raw: Any) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {}
    for name, value in dict(raw or {}).items():
        which = getattr(value, "WhichOneof", None)
        found[name] = value if which is None else getattr(value, which("parameter_choice"))
    return found
