"""The only import of the KServe SDK: the modules of its server, without its Kubernetes client.

`kserve/__init__.py` imports that client and 100 classes of its resources as well, which nothing
here uses: it runs when a name is asked of the package `kserve` itself (ADR 0055).
`kserve/model_server.py` reads the command line, with abbreviations, so that a flag of ours could
change its ports or end the process: `sys.argv` is empty during the import and restored after it.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType

REPLACED = ("constants", "utils")
"""Submodules whose names in the package are other modules' once its file has run."""


def put_off(spec: ModuleSpec) -> ModuleType:
    """The package of `spec` before its file has run, with its real path, so that its submodules
    can be imported. The file runs once, when a name is missing for the first time. Any thread."""
    package = module_from_spec(spec)
    lock, waiting = threading.RLock(), [spec.loader]

    def run_file_for(name: str) -> object:
        with lock:
            if waiting and not name.startswith("__"):  # Python asks for names of its own
                loader = waiting.pop()  # first: the file asks for names of its own
                assert loader is not None
                try:
                    loader.exec_module(package)
                except BaseException:
                    waiting.append(loader)  # the next one who asks gets the reason as well
                    raise
            if name in vars(package):
                return vars(package)[name]
        raise AttributeError(f"module {spec.name!r} has no attribute {name!r}")

    vars(package)["__getattr__"] = run_file_for
    return package


_is_put_off = "kserve" not in sys.modules
if _is_put_off:
    _spec = find_spec("kserve")
    assert _spec is not None
    sys.modules["kserve"] = put_off(_spec)

_argv, sys.argv = sys.argv, sys.argv[:1]
try:
    # first, since `from . import` would ask the package for them
    for _name in ("context", "logging"):
        importlib.import_module(f"kserve.{_name}")
    from kserve.metrics import POST_HIST_TIME, PRE_HIST_TIME, PREDICT_HIST_TIME
    from kserve.model import Model
    from kserve.model_server import ModelServer
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
    from kserve.protocol.infer_type import InferInput, InferOutput, InferRequest, InferResponse
finally:
    sys.argv = _argv

if _is_put_off:
    for _name in REPLACED:
        vars(sys.modules["kserve"]).pop(_name, None)

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
    "ModelServer",
    "pb",
    "pb_grpc",
]
