"""A V2 response as a `ModelInferResponse` message, all tensors raw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from predictors.protocol.kserve_sdk import pb
from predictors.protocol.v2.tensors import pack
from predictors.protocol.v2.values import Scalar, V2Response


def encode_response(response: V2Response) -> Any:
    """A `ModelInferResponse`, all tensors raw: tritonclient with numpy 2 can't read BYTES from
    `contents`."""
    message = pb.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id
    )
    for tensor in response.outputs:
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        write_parameters(output.parameters, tensor.parameters)
        message.raw_output_contents.append(pack(tensor))
    write_parameters(message.parameters, response.parameters)
    return message


def write_parameters(target: Any, parameters: Mapping[str, Scalar]) -> None:
    """Fill a map of `InferParameter`: int64, bool and string are all there is."""
    for name, value in parameters.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            target[name].int64_param = value
        else:
            target[name].string_param = str(value)
