"""Attention with one head that is too wide for the usual kernels: 512 channels in FLUX's decoder.

Scores are written to memory, for a chunk of queries at a time to bound it: two matmuls at full
speed with one small kernel between. Scores are float32, and each row is divided by its sum after
the second matmul, as in FlashAttention (https://arxiv.org/abs/2307.08691, 3.1).
Imported on CUDA only, and by tests in Triton's interpreter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from predictors.models.flux.modules.picture_kernels import weights_kernel

CHUNK_BYTES = 128 << 20  # of float32 scores: 2048 queries at 1024x1024
ROW_STEP = 64  # rows of scores begin at whole cache lines
BLOCK = 2048
WARPS = 8


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax(query key^T / sqrt(channels)) value, all (n, tokens, channels) of one dtype."""
    mixed = torch.empty_like(value, memory_format=torch.contiguous_format)
    for sample in range(query.shape[0]):
        _attend(query[sample], key[sample], value[sample], mixed[sample])
    return mixed


def _attend(query: Tensor, key: Tensor, value: Tensor, mixed: Tensor) -> None:
    # (tokens, channels) each; mixed is written
    num_keys, channels = key.shape
    stride = -(-num_keys // ROW_STEP) * ROW_STEP
    chunk = max(CHUNK_BYTES // (4 * stride), 1)
    for begin in range(0, query.shape[0], chunk):
        part = query[begin : begin + chunk]
        rows = part.shape[0]
        scores = torch.empty((rows, stride), dtype=torch.float32, device=value.device)
        weights = torch.empty_like(scores, dtype=value.dtype)
        sums = torch.empty((rows, 1), dtype=torch.float32, device=value.device)
        _multiply(part, key.T, scores[:, :num_keys])
        weights_kernel[(rows,)](
            scores, weights, sums, num_keys, channels**-0.5,
            STEP=ROW_STEP, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
        product = torch.empty((rows, channels), dtype=torch.float32, device=value.device)
        _multiply(weights[:, :num_keys], value, product)
        torch.div(product, sums, out=mixed[begin : begin + rows])


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    # out float32: sums are not rounded on the way; only CUDA can do that for narrower inputs
    if a.is_cuda and a.dtype != torch.float32:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)
