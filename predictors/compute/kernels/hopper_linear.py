"""Linears over up to 64 rows in bfloat16 on Hopper, with the norms between them, as chained
kernels: see hopper_linear.cu.

cuBLAS starts each kernel when the one before has ended; these have their first weights in shared
memory by then. Imported on CUDA only.
"""

from __future__ import annotations

import ctypes
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from importlib.resources import files
from typing import NamedTuple

import torch
from torch import Tensor

from predictors.compute.kernels.attention import HOPPER
from predictors.compute.kernels.cuda_code import machine_code
from predictors.compute.kernels.cuda_driver import CudaKernel, DriverError, tensor_map
from predictors.compute.kernels.hopper_tiling import (
    BLOCK_K,
    BOXES,
    MOST_FEATURES,
    SHARED_BYTES,
    SPLITS,
    Room,
    Tiling,
    box_for,
    stream_tiles,
    tile_for,
)

log = logging.getLogger(__name__)

ARCHITECTURE = "sm_90a"
THREADS, NORM_THREADS = 160, 256
SQUARES_STEP = 16
"""Sums of squares that a row has room for are a multiple of it."""


class Weighted(NamedTuple):
    """A stream x (rows, features) after an RMS norm but for the division by each row's root mean
    square. `values` (rows, features) bfloat16 are x * the norm's weights. `squares` (rows, any)
    float32 are sums of squares of a row's tiles, as `stream_tiles` cuts them; the rest is not
    set."""

    values: Tensor
    squares: Tensor


class Epilogue(NamedTuple):
    """The end of a kernel. It adds its sums to a stream, or divides them by the root mean square of
    each row of one, then adds a bias or writes float32. A row's squares are summed in `tiles`
    parts."""

    tiles: int
    is_added: bool = False
    has_bias: bool = False
    is_float: bool = False


@lru_cache(maxsize=1)
def is_available() -> bool:
    """True on Hopper, where the kernels can be compiled and loaded; says once why not."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != HOPPER:
        return False
    try:
        _room()
    except (ImportError, RuntimeError, OSError) as error:
        log.warning("decode steps of several rows use cuBLAS: %s", error)
        return False
    return True


def takes(weight: Tensor) -> bool:
    """True for a weight that the linears here multiply by."""
    width, features = weight.shape
    is_plain = weight.dtype == torch.bfloat16 and weight.is_contiguous()
    is_aligned = weight.data_ptr() % 16 == 0 and features % BLOCK_K == 0 and width % 16 == 0
    return is_plain and is_aligned


def normed_linear(
    x: Weighted,
    eps: float,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    is_gated: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """The product of the norm of a stream and `weight` (width, features), plus `bias` (width,); or
    silu(first half) * second half of it.

    At most `MOST_ROWS` rows; the weight as `takes` wants it, the stream as `normalizes` does. The
    result is written to `out` (rows, width), bfloat16 or float32."""
    rows, features = x.values.shape
    parts = 2 if is_gated else 1
    width = len(weight) // parts
    if out is None:
        out = torch.empty(rows, width, dtype=weight.dtype, device=weight.device)
    _, tiles = stream_tiles(features, _room())
    is_float = out.dtype == torch.float32
    _launch(
        x.values,
        weight,
        parts,
        Epilogue(tiles, has_bias=bias is not None, is_float=is_float),
        (_pointer(bias), _pointer(out), *[_pointer(None)] * 2, _pointer(x.squares)),
        eps,
    )
    return out


def added_linear(x: Tensor, weight: Tensor, stream: Tensor, norm_weight: Tensor) -> Weighted:
    """Add x @ weight.T to `stream` (rows, width), and give it `Weighted` for the norm that follows.

    x (rows, features) bfloat16 with at most `MOST_ROWS` rows, the weight as `takes` wants it, the
    stream as `normalizes` does; all contiguous."""
    made, tiles = _empty_weighted(stream)
    _launch(
        x,
        weight,
        1,
        Epilogue(tiles, is_added=True),
        (_pointer(None), *(_pointer(each) for each in (stream, norm_weight, *made))),
        0.0,
    )
    return made


def _launch(
    x: Tensor,
    weight: Tensor,
    parts: int,
    epilogue: Epilogue,
    pointers: tuple[ctypes.c_void_p, ...],
    eps: float,
) -> None:
    """`pointers` are the kernel's from bias to squares."""
    rows, features = x.shape
    width = len(weight) // parts
    shape = width, features, parts
    tile, kernel = _linear_kernel(x.get_device(), box_for(rows), shape, epilogue)
    kernel.launch(
        -(-width // tile.width) * tile.splits,
        (
            tensor_map(
                weight.data_ptr(),
                (features, width, parts),
                (features * 2, width * features * 2),
                (BLOCK_K, tile.width, parts),
            ),
            tensor_map(x.data_ptr(), (features, rows), (features * 2,), (BLOCK_K, tile.box)),
            *pointers,
            ctypes.c_float(eps),
            *(ctypes.c_int(size) for size in (rows, width, features)),
        ),
        torch.cuda.current_stream().cuda_stream,
        tile.splits,
    )


def weighted(stream: Tensor, norm_weight: Tensor) -> Weighted:
    """Of a stream that no `added_linear` has written last, with the bits that it would give it."""
    made, _ = _empty_weighted(stream)
    _weighted_kernel(stream.get_device(), stream.shape[1]).launch(
        len(stream),
        (
            *(_pointer(each) for each in (stream, norm_weight, *made)),
            ctypes.c_int(stream.shape[1]),
        ),
        torch.cuda.current_stream().cuda_stream,
    )
    return made


def _empty_weighted(stream: Tensor) -> tuple[Weighted, int]:
    """And the number of a row's tiles."""
    _, tiles = stream_tiles(stream.shape[1], _room())
    pitch = -(-tiles // SQUARES_STEP) * SQUARES_STEP
    squares = torch.empty(len(stream), pitch, dtype=torch.float32, device=stream.device)
    return Weighted(torch.empty_like(stream), squares), tiles


def normalizes(x: Tensor) -> bool:
    """True for rows that `norm` takes, and for a stream that goes through the linears here."""
    features = x.shape[1]
    return x.dtype == torch.bfloat16 and features % 8 == 0 and features <= MOST_FEATURES


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight for x (rows, features), contiguous, as `normalizes` wants them."""
    out = torch.empty_like(x)
    _norm_kernel(x.get_device()).launch(
        len(x),
        (
            *(_pointer(each) for each in (x, weight, out)),
            ctypes.c_int(x.shape[1]),
            ctypes.c_float(eps),
        ),
        torch.cuda.current_stream().cuda_stream,
    )
    return out


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@lru_cache(maxsize=1)
def _room() -> Room:
    """Of the current device. Clusters need neighbours, so some multiprocessors are left over."""
    # gives this thread the context that the driver's functions use; waiting for the device would
    # do so too, and would break the capture of another engine's thread
    torch.zeros(1, device="cuda")
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    code = machine_code(_source("hopper_norm.cu"), {}, ARCHITECTURE)
    probe = CudaKernel(code, "hopper_norm", THREADS, SHARED_BYTES)
    clusters = probe.clusters_at_once(SPLITS)
    if not clusters:
        raise DriverError(f"the card has no room for a cluster of {SPLITS} blocks")
    return Room(properties.multi_processor_count, clusters)


@cache
def _norm_kernel(device: int) -> CudaKernel:
    code = machine_code(_source("hopper_norm.cu"), {}, ARCHITECTURE)
    return CudaKernel(code, "hopper_norm", NORM_THREADS, 0)


@cache
def _weighted_kernel(device: int, features: int) -> CudaKernel:
    code = weighted_code_for(features, _room())
    return CudaKernel(code, "hopper_weighted", NORM_THREADS, 0)


@cache
def _linear_kernel(
    device: int, box: int, shape: tuple[int, int, int], epilogue: Epilogue
) -> tuple[Tiling, CudaKernel]:
    """The kernel for up to `box` rows of a linear of this width, features and parts."""
    tile, code = _codes(shape, epilogue)[box]
    return tile, CudaKernel(code, "hopper_linear", THREADS, tile.shared_bytes)


@cache
def _codes(shape: tuple[int, int, int], epilogue: Epilogue) -> dict[int, tuple[Tiling, bytes]]:
    """Of every box, compiled side by side: a start wants them all."""

    def compiled(box: int) -> tuple[Tiling, bytes]:
        tile = tile_for(box, *shape, _room())
        return tile, code_for(tile, epilogue)

    with ThreadPoolExecutor(len(BOXES), thread_name_prefix="nvrtc") as pool:
        return dict(zip(BOXES, pool.map(compiled, BOXES), strict=True))


def code_for(tile: Tiling, epilogue: Epilogue) -> bytes:
    """A linear's machine code; needs no card."""
    macros = {name.upper(): value for name, value in tile._asdict().items()}
    macros |= {"IS_ADDED": int(epilogue.is_added), "HAS_BIAS": int(epilogue.has_bias)}
    macros |= {"OUT_F32": int(epilogue.is_float), "TILES": epilogue.tiles}
    source = _source("hopper_linear.cu").replace("// WGMMA", _wgmma(tile.width))
    return machine_code(_with_stream(source), macros, ARCHITECTURE)


def weighted_code_for(features: int, room: Room) -> bytes:
    """The machine code of `weighted` for a stream of so many features; needs no card."""
    tile, tiles = stream_tiles(features, room)
    source = _with_stream(_source("hopper_weighted.cu"))
    return machine_code(source, {"WIDTH": tile, "TILES": tiles}, ARCHITECTURE)


def _with_stream(source: str) -> str:
    return source.replace("// STREAM", _source("hopper_stream.cu"))


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _wgmma(width: int) -> str:
    """The function `wgmma`: d (64, width) += a (64, 16) b (width, 16)^T, by descriptors of a and
    b."""
    count = width // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    sums = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    return (
        f"__device__ __forceinline__ void wgmma(float (&d)[{count}], u64 a, u64 b) {{\n"
        f'  asm volatile("{{\\n.reg .pred adds;\\nsetp.eq.u32 adds, 0, 0;\\n"\n'
        f'    "wgmma.mma_async.sync.aligned.m64n{width}k16.f32.bf16.bf16 {{{registers}}}, "\n'
        f'    "%{count}, %{count + 1}, adds, 1, 1, 0, 0;\\n}}"\n'
        f'    : {sums} : "l"(a), "l"(b));\n}}'
    )
