"""The only import of the KServe SDK, which reads the command line at import.

kserve/model_server.py calls `parser.parse_known_args()` with abbreviations, so that a flag of ours
could change its ports or end the process. Here `sys.argv` is empty during the import and restored
after it.
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
    from kserve.metrics import POST_HIST_TIME, PRE_HIST_TIME, PREDICT_HIST_TIME
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
finally:
    sys.argv = _argv

# KServe logs a line per request and per model at INFO; our access log has the same.
logging.getLogger("kserve").setLevel(logging.WARNING)
logging.getLogger("kserve.trace").setLevel(logging.WARNING)

__all__ = [
    "POST_HIST_TIME",
    "PREDICT_HIST_TIME",
    "PRE_HIST_TIME",
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
