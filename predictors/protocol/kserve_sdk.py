"""The one door to the KServe SDK. Knows why it needs one: `import kserve` parses `sys.argv`.

kserve/model_server.py runs `parser.parse_known_args()` at import, with abbreviations: a foreign
flag can change its ports or end the process. Here it sees an empty command line, and the caller's
is put back.
"""

from __future__ import annotations

import logging
import sys

_argv, sys.argv = sys.argv, sys.argv[:1]
try:
    from kserve import (
        InferInput,
        InferOutput,
        InferRequest,
        InferResponse,
        Model,
        ModelRepository,
        ModelServer,
    )
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
finally:
    sys.argv = _argv

# KServe logs one latency line per request and one per model at INFO; our access log says it once.
logging.getLogger("kserve").setLevel(logging.WARNING)
logging.getLogger("kserve.trace").setLevel(logging.WARNING)

__all__ = [
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "Model",
    "ModelRepository",
    "ModelServer",
    "pb",
    "pb_grpc",
]
