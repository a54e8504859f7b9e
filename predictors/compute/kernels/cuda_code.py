"""Compiles CUDA C++ for the card by NVRTC, and keeps the machine code where Triton keeps its own.

For kernels that need what Triton 3.6 does not give: clusters of blocks, and loads that begin before
the kernel before has ended.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton.runtime.cache import get_cache_manager

log = logging.getLogger(__name__)

FILE = "kernel.cubin"


def machine_code(source: str, macros: Mapping[str, int], architecture: str) -> bytes:
    """The cubin of `source` for an architecture such as `sm_90a`. Any thread; takes about half a
    second where it is not kept.

    Raises `ImportError` without NVRTC, `RuntimeError` with its log if the source does not compile.
    """
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")  # comes with torch for CUDA
    options = [f"--gpu-architecture={architecture}", "--std=c++17"]
    options += [f"-D{name}={value}" for name, value in macros.items()]
    version = _checked(nvrtc.nvrtcVersion())
    key = hashlib.sha256(repr((source, options, version)).encode()).hexdigest()
    try:
        kept = get_cache_manager(key)
        path = kept.get_file(FILE)
        if path is not None:
            return Path(path).read_bytes()
    except OSError as error:
        log.warning("machine code is compiled, since the kept one can't be read: %s", error)
        return _compiled(nvrtc, source, options)
    code = _compiled(nvrtc, source, options)
    try:
        kept.put(code, FILE)
    except OSError as error:
        log.warning("machine code is not kept for the next start: %s", error)
    return code


def _compiled(nvrtc: Any, source: str, options: list[str]) -> bytes:
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(
            program, len(options), [option.encode() for option in options]
        )
        if int(status):
            log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"NVRTC: {log.decode(errors='replace').strip(chr(0))}")
        code: bytes = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
        return code
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _checked(result: tuple[Any, ...]) -> Any:
    status, *values = result
    if int(status):
        raise RuntimeError(f"NVRTC: {status}")
    return values[0] if len(values) == 1 else values
