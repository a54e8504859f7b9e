"""The baseline echo server: the smallest model on stock KServe's own server.

`python -m benchmarks.serving.echo_bare PORT`. It writes one access line per request, like ours. The
other lines that stock KServe writes per request are off, so logging does not decide the comparison.
"""

from __future__ import annotations

import functools
import logging
import sys

PORT = int(sys.argv.pop(1))

import uvicorn  # noqa: E402 - `import kserve` parses what is left of the command line
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer  # noqa: E402
from kserve.protocol.rest import server as rest  # noqa: E402


class Echo(Model):  # type: ignore[misc]
    def load(self) -> bool:
        self.ready = True
        return True

    async def predict(self, payload: InferRequest, headers: dict[str, str]) -> InferResponse:
        given = payload.inputs[0]
        output = InferOutput("text", list(given.shape), "BYTES", data=given.data)
        return InferResponse(payload.id, self.name, [output])


def main() -> None:
    """Serve until a signal, on the loopback only: KServe itself has no option for that."""
    quiet = functools.partial(uvicorn.Config)

    def config(app: object, host: str, **rest_of_it: object) -> uvicorn.Config:
        return quiet(app, host="127.0.0.1", **rest_of_it)

    rest.uvicorn.Config = config
    model = Echo("echo")
    model.load()
    server = ModelServer(http_port=PORT, enable_grpc=False, enable_latency_logging=False)
    logging.getLogger("kserve.trace").setLevel(logging.WARNING)
    server.start([model])


if __name__ == "__main__":
    main()
