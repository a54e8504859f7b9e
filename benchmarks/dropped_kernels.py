"""Two kernels that were dropped for faults of Triton 3.6, tried with the Triton that is installed:
window attention with one head per program, and attention over e4m3 with warp specialisation.

`python -m benchmarks.dropped_kernels` compiles them for sm_90, which needs no card, each in a
process of its own, since the compiler may crash. On a Hopper card it also compares their results
with float32 and times them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.common.absent_gpu import compile_for_hopper
from benchmarks.common.clock import Clock
from predictors.models.qwen2_5_vl.vision.kernels import window_attention_kernel

HEADS, DIM, ROWS = 16, 80, 64  # of the tower
WINDOWS = 100  # of a picture of 1024x1024
TOKENS, FLUX_HEADS, FLUX_DIM = 4608, 24, 128
LAUNCHES = 200
WRONG = 0.05
"""A window whose relative distance to float32 is larger is wrong: bfloat16 gives 0.005."""
FOUND = ("bar.sync", "fence.proxy.async", "wgmma.mma_async", "setmaxnreg", "cp.async.bulk.tensor")
"""Counted in the PTX; `setmaxnreg` tells that warps are specialised."""
CASES = (
    "window 2",
    "window 1",
    "e4m3 pointers 8 plain",
    "e4m3 pointers 4 specialised",
    "e4m3 descriptors 8 plain",
    "e4m3 descriptors 4 specialised",
)


@triton.jit
def e4m3_attention_kernel(
    query,
    key,
    value,
    out,
    tokens,
    SCALE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_DESCRIPTORS: tl.constexpr,
    IS_SPECIALISED: tl.constexpr,
):
    """query, key (heads, tokens, DIM) and value (heads, DIM, tokens) in e4m3, out (heads, tokens,
    DIM) in bfloat16; `tokens` is a multiple of BLOCK. SCALE has log2(e) in it."""
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    first = head * tokens + tl.program_id(0) * BLOCK
    lanes, dims = tl.arange(0, BLOCK), tl.arange(0, DIM)
    there = (first + lanes)[:, None] * DIM + dims[None, :]
    if HAS_DESCRIPTORS:
        rows = tl.make_tensor_descriptor(query, [heads * tokens, DIM], [DIM, 1], [BLOCK, DIM])
        queries = rows.load([first, 0])
        keys_of = tl.make_tensor_descriptor(key, [heads * tokens, DIM], [DIM, 1], [BLOCK, DIM])
        values_of = tl.make_tensor_descriptor(
            value, [heads * DIM, tokens], [tokens, 1], [DIM, BLOCK]
        )
    else:
        queries = tl.load(query + there)
    most = tl.full((BLOCK,), -float("inf"), tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    mixed = tl.zeros((BLOCK, DIM), tl.float32)
    for start in tl.range(0, tokens, BLOCK, warp_specialize=IS_SPECIALISED):
        if HAS_DESCRIPTORS:
            keys = keys_of.load([head * tokens + start, 0])
        else:
            keys = tl.load(key + (head * tokens + start + lanes)[:, None] * DIM + dims[None, :])
        scores = tl.dot(queries, keys.T) * SCALE
        higher = tl.maximum(most, tl.max(scores, axis=1))
        shrink, share = tl.exp2(most - higher), tl.exp2(scores - higher[:, None])
        mass = mass * shrink + tl.sum(share, axis=1)
        if HAS_DESCRIPTORS:
            values = values_of.load([head * DIM, start])
        else:
            places = (head * DIM + dims)[:, None] * tokens + (start + lanes)[None, :]
            values = tl.load(value + places)
        mixed = tl.dot(share.to(tl.float8e4nv), values.T, mixed * shrink[:, None])
        most = higher
    tl.store(out + there, (mixed / mass[:, None]).to(tl.bfloat16))


def window_options(heads: int, each: int) -> dict[str, Any]:
    """The arguments that the tower gives the kernel, with `each` heads per program."""
    sizes = {"HEADS": heads, "DIM": DIM, "ROWS": ROWS, "LOW": 64, "HIGH": 16}
    return {"SCALE": DIM**-0.5, **sizes, "EACH": each, "num_warps": 4}


def e4m3_options(loads: str, warps: int, form: str, block: int = 128) -> dict[str, Any]:
    return {
        "SCALE": FLUX_DIM**-0.5 * 1.4426950408889634,
        "DIM": FLUX_DIM,
        "BLOCK": block,
        "HAS_DESCRIPTORS": loads == "descriptors",
        "IS_SPECIALISED": form == "specialised",
        "num_warps": warps,
        "num_stages": 3,
    }


def compiled(case: str) -> dict[str, Any]:
    """A case compiled for sm_90: shared memory in bytes, warps, how often `FOUND` occur."""
    kind, *rest = case.split()
    if kind == "window":
        wide, ints = torch.bfloat16, torch.int64
        given = (wide, torch.float32, torch.float32, ints, ints, wide)
        kernel, options = window_attention_kernel, window_options(HEADS, int(rest[0]))
    else:
        narrow = torch.float8_e4m3fn
        given = (narrow, narrow, narrow, torch.bfloat16, TOKENS)
        kernel, options = e4m3_attention_kernel, e4m3_options(rest[0], int(rest[1]), rest[2])
    code = kernel.warmup(*given, **options, enable_fp_fusion=True, grid=(1,))
    facts = {"shared": code.metadata.shared, "warps": code.metadata.num_warps}
    return facts | {name: code.asm["ptx"].count(name) for name in FOUND}


def windows(
    device: torch.device, dtype: torch.dtype, count: int, heads: int, seed: int
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Arguments of `window_attention_kernel` but for `out`, every fourth window with 16 rows less,
    and the float32 result (count, ROWS, heads * DIM) without them."""
    generator = torch.Generator(device).manual_seed(seed)
    qkv = torch.randn(count * ROWS, 3, heads, DIM, generator=generator, device=device)
    angles = torch.rand(count * ROWS, DIM // 2, generator=generator, device=device) * 6
    cos, sin = (turn.repeat(1, 2) for turn in (angles.cos(), angles.sin()))
    starts = torch.arange(count, device=device) * ROWS
    lengths = torch.full((count,), ROWS, device=device)
    lengths[::4] -= 16
    qkv = qkv.to(dtype)
    wide = qkv.float()
    first, second = wide[:, :2].chunk(2, -1)
    turned = wide[:, :2] * cos[:, None, None] + torch.cat((-second, first), -1) * sin[:, None, None]
    query, key, value = (
        x.unflatten(0, (count, ROWS)).transpose(1, 2)
        for x in (*turned.to(dtype).float().unbind(1), wide[:, 2])
    )
    is_real = torch.arange(ROWS, device=device) < lengths[:, None]
    exact = F.scaled_dot_product_attention(query, key, value, is_real[:, None, None])
    exact = exact.transpose(1, 2).flatten(2) * is_real[..., None]
    return (qkv.flatten(1), cos, sin, starts, lengths), exact


def attend_windows(given: tuple[Tensor, ...], each: int) -> Tensor:
    """As `windows` has the result."""
    count, heads = len(given[3]), given[0].shape[1] // (3 * DIM)
    out = given[0].new_zeros(count, ROWS, heads * DIM)
    window_attention_kernel[(count, heads // each)](*given, out, **window_options(heads, each))
    return out


def e4m3_heads(device: torch.device, heads: int, tokens: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Query, key, transposed value in e4m3 and the float32 result of the values before rounding."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (3, heads, tokens, FLUX_DIM)
    query, key, value = torch.randn(shape, generator=generator, device=device)
    exact = F.scaled_dot_product_attention(query, key, value)
    narrow = (query, key, value.transpose(1, 2).contiguous())
    return tuple(x.to(torch.float8_e4m3fn) for x in narrow), exact


def attend_in_e4m3(given: tuple[Tensor, ...], options: dict[str, Any]) -> Tensor:
    heads, tokens, _ = given[0].shape
    out = torch.empty(given[0].shape, dtype=torch.bfloat16, device=given[0].device)
    grid = (tokens // options["BLOCK"], heads)
    e4m3_attention_kernel[grid](*given, out, tokens, **options)
    return out


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


def measured(case: str) -> dict[str, Any]:
    """On the card: wrong windows over `LAUNCHES` inputs, or the error, and microseconds."""
    device = torch.device("cuda")
    kind, *rest = case.split()
    run: Callable[[], Tensor]
    if kind == "window":
        wrong = 0
        for seed in range(LAUNCHES):
            given, exact = windows(device, torch.bfloat16, WINDOWS, HEADS, seed)
            off = (attend_windows(given, int(rest[0])).float() - exact).norm(dim=(1, 2))
            wrong += int((~(off < WRONG * exact.norm(dim=(1, 2)))).sum())  # NaN is wrong too
        facts: dict[str, Any] = {"wrong": wrong, "windows": LAUNCHES * WINDOWS}
        run = lambda: attend_windows(given, int(rest[0]))  # noqa: E731
    else:
        triton.set_allocator(lambda size, _, stream: torch.empty(size, dtype=torch.int8).cuda())
        given, exact = e4m3_heads(device, FLUX_HEADS, TOKENS)
        options = e4m3_options(rest[0], int(rest[1]), rest[2])
        facts = {"error": distance(attend_in_e4m3(given, options), exact)}
        run = lambda: attend_in_e4m3(given, options)  # noqa: E731
    return facts | {"us": 1e3 * Clock(device).device_ms(run, 20, warm=3).median}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, help="one case in this process, as JSON")
    case = parser.parse_args().case
    if case is not None:
        if not torch.cuda.is_available():
            compile_for_hopper()
        print(json.dumps(compiled(case)), flush=True)
        if torch.cuda.is_available():
            print(json.dumps(measured(case)))
        return
    print(f"Triton {triton.__version__}, torch {torch.__version__}")
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.dropped_kernels", "--case", case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(case, done.stdout.strip() or f"no code, exit code {done.returncode}", sep=": ")
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "ailed" in line or "ERROR" in line]
            print(*said[:3], sep="\n")


if __name__ == "__main__":
    main()
