"""Linears over up to 64 rows in bfloat16 on Hopper, as chained kernels: see hopper_linear.cu.

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

log = logging.getLogger(__name__)

ARCHITECTURE = "sm_90a"
MOST_ROWS = 64
BLOCK_K = 64
BOXES = (8, 32, 64)
"""Rows of x that a kernel may be made for."""
STAGE_BYTES = MOST_ROWS * BLOCK_K * 2
"""Least bytes of a stage: a wgmma reads so much."""
SHARED_BYTES = 220 * 1024
"""Of the 227 KiB that a block may have: a small block of the kernel after fits beside it."""
THREADS, NORM_THREADS = 160, 256
MOST_FEATURES = 8192
"""Of a row that is normed: its values stay in registers."""
MOST_WIDTH, MOST_SUMS = 256, 320
"""Features of a wgmma, and sums that a thread has room for, in pairs."""
SPLITS = 4
"""Blocks that share a tile of a narrow linear. More of them wait longer for each other, and more
multiprocessors are left over, since a cluster lies in one part of the card."""
WIDE = 128
"""Features per multiprocessor from which on K need not be split."""


class Tiling(NamedTuple):
    """A kernel's macros, but for its epilogue's."""

    box: int
    width: int
    parts: int
    splits: int
    stages: int

    @property
    def shared_bytes(self) -> int:
        stage = self.box * BLOCK_K * 2 + self.parts * self.width * BLOCK_K * 2
        return self.stages * (stage + 16) + _sums_bytes(self.width, self.splits)


class Room(NamedTuple):
    """Blocks that the card runs at once: one by one, and clusters of `SPLITS`."""

    blocks: int
    clusters: int


def tile_for(rows: int, width: int, features: int, parts: int, room: Room) -> Tiling:
    """For `rows` of x (rows, features) and a weight (parts * width, features): as many tiles as the
    card runs at once, or a multiple of it, so that no multiprocessor has one more than others."""
    box = _box_for(rows)
    is_split = parts == 1 and width < WIDE * room.blocks
    splits, at_once = (SPLITS, room.clusters) if is_split else (1, room.blocks)
    most = min(MOST_WIDTH, MOST_SUMS // parts // 8 * 8)
    waves = -(-width // (at_once * most))
    least = -(-(STAGE_BYTES // (BLOCK_K * 2) - box) // parts)
    tile = max(-(-width // (at_once * waves)), least, 8)
    tile = -(-tile // 8) * 8
    stage = box * BLOCK_K * 2 + parts * tile * BLOCK_K * 2 + 16
    fitting = (SHARED_BYTES - _sums_bytes(tile, splits)) // stage
    return Tiling(box, tile, parts, splits, min(fitting, -(-(features // BLOCK_K) // splits)))


def _box_for(rows: int) -> int:
    return next(size for size in BOXES if rows <= size)


def _sums_bytes(width: int, splits: int) -> int:
    return MOST_ROWS * (width + 4) * 4 if splits > 1 else 0


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
    """True for a weight that `linear` multiplies by."""
    width, features = weight.shape
    is_plain = weight.dtype == torch.bfloat16 and weight.is_contiguous()
    is_aligned = weight.data_ptr() % 16 == 0 and features % BLOCK_K == 0 and width % 16 == 0
    return is_plain and is_aligned


def linear(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    is_gated: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """x @ weight.T plus `bias` (width,) or `residual` (rows, width), of which one may be given; or
    silu(first half) * second half of the product.

    x (rows, features) bfloat16 with at most `MOST_ROWS` rows, weight (width, features) as `takes`
    wants it; both contiguous. The result is written to `out` (rows, width), bfloat16 or float32; it
    may be the residual."""
    rows, features = x.shape
    parts = 2 if is_gated else 1
    width = len(weight) // parts
    if out is None:
        out = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    addend = bias if residual is None else residual
    tile, kernel = _linear_kernel(
        x.get_device(),
        _box_for(rows),
        (width, features, parts),
        addend is not None,
        out.dtype == torch.float32,
    )
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
            _pointer(addend),
            ctypes.c_int(0 if residual is None else width),
            _pointer(out),
            *(ctypes.c_int(size) for size in (rows, width, features)),
        ),
        torch.cuda.current_stream().cuda_stream,
        tile.splits,
    )
    return out


def normalizes(x: Tensor) -> bool:
    """True for rows that `norm` takes."""
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
def _linear_kernel(
    device: int, box: int, shape: tuple[int, int, int], has_addend: bool, is_float: bool
) -> tuple[Tiling, CudaKernel]:
    """The kernel for up to `box` rows of a linear of this width, features and parts."""
    tile, code = _codes(shape, has_addend, is_float)[box]
    return tile, CudaKernel(code, "hopper_linear", THREADS, tile.shared_bytes)


@cache
def _codes(
    shape: tuple[int, int, int], has_addend: bool, is_float: bool
) -> dict[int, tuple[Tiling, bytes]]:
    """Of every box, compiled side by side: a start wants them all."""

    def compiled(box: int) -> tuple[Tiling, bytes]:
        tile = tile_for(box, *shape, _room())
        return tile, code_for(tile, has_addend=has_addend, is_float=is_float)

    with ThreadPoolExecutor(len(BOXES), thread_name_prefix="nvrtc") as pool:
        return dict(zip(BOXES, pool.map(compiled, BOXES), strict=True))


def code_for(tile: Tiling, *, has_addend: bool, is_float: bool) -> bytes:
    """The kernel's machine code; needs no card. It adds a bias or residual, or writes float32."""
    macros = {name.upper(): value for name, value in tile._asdict().items()}
    macros |= {"HAS_ADDEND": int(has_addend), "OUT_F32": int(is_float)}
    source = _source("hopper_linear.cu").replace("// WGMMA", _wgmma(tile.width))
    return machine_code(source, macros, ARCHITECTURE)


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
