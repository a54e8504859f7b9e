"""Launches compiled CUDA kernels through the driver's C functions, with clusters of blocks, chained
launches and tensor maps.

By ctypes, since `cuTensorMapEncodeTiled` needs a map at a multiple of 64 bytes, and the maps of
cuda-bindings 13.0 lie anywhere. The layouts are those of `cuda.h` from CUDA 12.3 on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

LIBRARY = "libcuda.so.1"
CLUSTER_DIMENSION, CHAINED = 4, 6  # CUlaunchAttributeID
MAX_DYNAMIC_SHARED, CARVEOUT = 8, 9  # CUfunction_attribute
BFLOAT16, SWIZZLE_128B, PROMOTION_256B = 9, 3, 3  # CUtensorMap...
MAP_BYTES = 128


class DriverError(RuntimeError):
    """The CUDA driver refused a call."""


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_uint32 * 16))


class _LaunchConfig(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint32),
    )


class CudaKernel:
    """A function of machine code, loaded into the current context. Any thread."""

    def __init__(self, code: bytes, name: str, threads: int, shared_bytes: int) -> None:
        """`threads` and `shared_bytes` (dynamic) are those of a block."""
        self._threads, self._shared_bytes = threads, shared_bytes
        self._code = ctypes.create_string_buffer(code, len(code) + 1)
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _call("cuModuleLoadData", ctypes.byref(self._module), self._code)
        function = ctypes.byref(self._function)
        _call("cuModuleGetFunction", function, self._module, name.encode())
        for attribute, value in ((MAX_DYNAMIC_SHARED, shared_bytes), (CARVEOUT, 100)):
            # the whole carveout, also for small kernels: one that splits a multiprocessor's memory
            # otherwise cannot begin beside one that runs
            _call("cuFuncSetAttribute", self._function, attribute, value)

    def launch(self, blocks: int, arguments: Sequence[Any], stream: int, cluster: int = 1) -> None:
        """Launch on `stream`, a handle. `arguments` are ctypes objects, copied during the call. The
        launch is chained: blocks may begin before the kernel before has ended."""
        config, held = self._config(blocks, stream, cluster, is_chained=True)
        addresses = [ctypes.addressof(argument) for argument in arguments]
        parameters = (ctypes.c_void_p * len(addresses))(*addresses)
        _call("cuLaunchKernelEx", ctypes.byref(config), self._function, parameters, None)
        del held

    def clusters_at_once(self, cluster: int) -> int:
        """Clusters of so many blocks that the idle card can run at once."""
        found = ctypes.c_int()
        config, held = self._config(cluster, 0, cluster, is_chained=False)
        arguments = (ctypes.byref(found), self._function, ctypes.byref(config))
        _call("cuOccupancyMaxActiveClusters", *arguments)
        del held
        return found.value

    def _config(
        self, blocks: int, stream: int, cluster: int, *, is_chained: bool
    ) -> tuple[_LaunchConfig, Any]:
        """The configuration, and what has to live as long."""
        attributes = (_Attribute * 2)()
        count = 0
        if cluster > 1:
            attributes[count].id = CLUSTER_DIMENSION
            attributes[count].value[0:3] = [cluster, 1, 1]
            count += 1
        if is_chained:
            attributes[count].id = CHAINED
            attributes[count].value[0] = 1
            count += 1
        config = _LaunchConfig()
        config.grid[:] = [blocks, 1, 1]
        config.block[:] = [self._threads, 1, 1]
        config.shared_bytes, config.stream = self._shared_bytes, stream
        config.attributes, config.num_attributes = attributes, count
        return config, attributes


def tensor_map(
    address: int, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int]
) -> Any:
    """A map for loads of boxes of bfloat16 with a swizzle of 128 bytes; what lies beyond `sizes` is
    loaded as zeros. The innermost dimension comes first; `strides` in bytes, without its own."""
    room = ctypes.create_string_buffer(2 * MAP_BYTES)
    offset = -ctypes.addressof(room) % MAP_BYTES
    made = (ctypes.c_char * MAP_BYTES).from_buffer(room, offset)
    count = len(sizes)
    dims, numbers = ctypes.c_uint64 * count, ctypes.c_uint32 * count
    _call(
        "cuTensorMapEncodeTiled",
        ctypes.byref(made),
        BFLOAT16,
        count,
        ctypes.c_void_p(address),
        dims(*sizes),
        (ctypes.c_uint64 * (count - 1))(*strides),
        numbers(*box),
        numbers(*[1] * count),
        0,  # not interleaved
        SWIZZLE_128B,
        PROMOTION_256B,
        0,  # zeros beyond the end
    )
    return made


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(LIBRARY)


def _call(function: str, *arguments: Any) -> None:
    status = getattr(_library(), function)(*arguments)
    if status:
        name = ctypes.c_char_p()
        _library().cuGetErrorName(status, ctypes.byref(name))
        raise DriverError(f"{function}: {(name.value or b'unknown error').decode()}")
