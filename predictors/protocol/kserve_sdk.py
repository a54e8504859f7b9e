"""The only import of the KServe SDK: the modules of its server, without its Kubernetes client.

`kserve/__init__.py` imports that client and 100 classes of its resources as well, which nothing
here uses: it runs when a name is asked of the package `kserve` itself (ADR 0055). So does pandas.
`kserve/model_server.py` reads the command line, with abbreviations, so that a flag of ours could
change its ports or end the process: `sys.argv` is empty during the import and restored after it.
"""

from __future__ import annotations

import importlib
import logging
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec, module_from_spec
from types import CodeType, ModuleType
from typing import Any

REPLACED = ("constants", "utils")
"""Submodules whose names in the package are other modules' once its file has run."""
WITH_PANDAS = ("kserve.protocol.infer_type", "kserve.utils.utils")
"""Files that import pandas for two functions, and annotate with its classes."""


class PackageFile(Loader):
    """Finder and loader of a module whose import runs the file of a package. Python's own lock of
    that import sees threads that wait for each other; one of ours would not."""

    def __init__(self, package: ModuleType, loader: Loader) -> None:
        self.name = f"{package.__name__} (its file, {id(package)})"
        self._package = package
        self._loader = loader

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name == self.name else None

    def create_module(self, spec: ModuleSpec) -> None: ...

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(self._package)


def put_off(spec: ModuleSpec, *, comes_first: bool = False) -> ModuleType:
    """The package of `spec` before its file has run, with its real path. The file runs once, when a
    name is missing for the first time, and with `comes_first` before the first submodule. Any
    thread; one that another's import waits for may find the name missing still, as in a circular
    import."""
    package = module_from_spec(spec)
    assert spec.loader is not None
    file = PackageFile(package, spec.loader)
    sys.meta_path.append(file)
    path = vars(package).pop("__path__") if comes_first else package.__path__

    def run_file_for(name: str) -> object:
        # Python asks for names of its own, and for the path before it imports a submodule
        if name == "__path__" or not name.startswith("__"):
            vars(package)["__path__"] = path  # the file's own imports need it
            __import__(file.name)  # `import_module` raises where threads wait for each other
        if name in vars(package):
            return vars(package)[name]
        raise AttributeError(f"module {spec.name!r} has no attribute {name!r}")

    vars(package)["__getattr__"] = run_file_for
    return package


class UnreadAnnotations(SourceFileLoader):
    """Compiles a file as if it began with `from __future__ import annotations`, which Python 3.14
    does to all: what its functions are annotated with is not asked for. Keeps no bytecode, since
    the file's own has its place."""

    def get_code(self, fullname: str) -> CodeType:
        source, flag = self.get_data(self.path), annotations.compiler_flag
        code: CodeType = compile(source, self.path, "exec", flags=flag, dont_inherit=True)
        return code


class FilesWithPandas:
    """Finder of `WITH_PANDAS`."""

    @staticmethod
    def find_spec(name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in WITH_PANDAS else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = UnreadAnnotations(name, spec.loader.path)
        return spec


def _put_off_package(name: str, *, comes_first: bool) -> bool:
    """False if it is imported already, or not installed."""
    spec = None if name in sys.modules else find_spec(name)
    if spec is None:
        return False
    sys.modules[name] = put_off(spec, comes_first=comes_first)
    return True


_is_put_off = _put_off_package("kserve", comes_first=False)
_put_off_package("pandas", comes_first=True)

sys.meta_path.insert(0, FilesWithPandas)
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
    sys.meta_path.remove(FilesWithPandas)

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
