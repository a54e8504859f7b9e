"""Our echo server: a no-op engine behind the real HTTP edge, predictor, queue and engine thread.

`python -m benchmarks.serving.echo_ours PORT`. A request passes everything except a model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from predictors.base import Answer, BasePredictor
from predictors.metrics import ModelSeries
from predictors.observe import logs
from predictors.protocol.server import PredictorServer
from predictors.protocol.v2.values import InputTensors, Parameters, Tensor, V2Request, V2Response
from predictors.settings import Settings
from tests.fakes import EchoEngine


class Echo(BasePredictor[str, str, str]):
    task = "qwen_vl"
    series = ModelSeries(operations=("infer", "chat"))
    inline = True

    def __init__(self, settings: Settings) -> None:
        super().__init__("echo", EchoEngine(slots=16), settings)

    def decode_v2(self, request: V2Request) -> list[str]:
        inputs = InputTensors(request.inputs)
        rows = inputs.read_text("prompt") or []
        inputs.reject_unread()
        Parameters(request.parameters).reject_unread()
        return rows

    def prepare(self, request: str) -> str:
        return request

    def encode_v2(self, request: V2Request, answers: list[Answer[str, str]]) -> V2Response:
        rows = [b"".join(chunk.encode() for chunk in answer.chunks) for answer in answers]
        output = Tensor("text", "BYTES", (len(rows),), rows, text=True)
        return V2Response(request.model, request.id, (output,))

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "prompt", "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": "text", "datatype": "BYTES", "shape": [-1]}]

    async def chat(self, body: Mapping[str, Any], call: object) -> dict[str, Any]:
        raise NotImplementedError


def main() -> int:
    settings = Settings()
    server = replace(settings.server, port=int(sys.argv[1]), grpc_port=-1)
    logs.configure_logging("text", "info")
    settings = replace(settings, server=server)
    return int(PredictorServer([Echo(settings)], settings).run())


if __name__ == "__main__":
    sys.exit(main())
