"""The responses of `ModelStreamInfer` (Triton's `ModelStreamInferResponse`) on the wire, and the
mark of the last one to a request. Loads neither KServe nor numpy: the activator reads the mark.
"""

from __future__ import annotations

from predictors.errors import InvalidRequest
from predictors.protocol.grpc.protobuf_reader import LENGTH, VARINT, Span, WireReader

METHOD = "ModelStreamInfer"
PATH = f"/inference.GRPCInferenceService/{METHOD}"
FINAL = "triton_final_response"
"""Parameter of every response: true for the last one to its request."""
ERROR, RESPONSE = 1, 2
"""Fields of a response: `error_message`, `infer_response`."""
_PARAMETERS = 4  # field of `ModelInferResponse`: a map of names to `InferParameter`
_NAME, _VALUE = 1, 2  # of an entry of the map
_BOOL = 1  # field of `InferParameter`
_MOST_FIELDS = 4096
"""Fields that are looked at; the tensors themselves are not."""


def ends_request(raw: bytes) -> bool:
    """True for the last response to a request: one with an error, or marked as the last. False for
    one without a mark and for what is no response."""
    reader = WireReader(raw, _MOST_FIELDS)
    try:
        return any(
            (number == ERROR and span[0] < span[1])
            or (number == RESPONSE and wire == LENGTH and _is_marked(reader, span))
            for number, wire, _, span in reader.fields(reader.whole)
        )
    except InvalidRequest:
        return False


def _is_marked(reader: WireReader, response: Span) -> bool:
    for number, wire, _, entry in reader.fields(response):
        if number == _PARAMETERS and wire == LENGTH:
            fields = {each: span for each, kind, _, span in reader.fields(entry) if kind == LENGTH}
            if reader.bytes(fields.get(_NAME, (0, 0))) == FINAL.encode():
                value = reader.fields(fields.get(_VALUE, (0, 0)))
                return any(x for each, kind, x, _ in value if (each, kind) == (_BOOL, VARINT))
    return False
