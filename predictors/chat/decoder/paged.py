"""Attention over KV pages as one opaque op, `predictors::paged_attention`, with a reference in
plain PyTorch.

The op writes the new keys and values into their pages and attends each sequence to its own pages
only, one sequence at a time: a result depends on its own sequence's length and on nothing else. On
a GPU `fused.py` does the same in its own kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SCRATCH_PAGE = 0  # padding rows write here; no sequence ever owns it
TILE = 16  # rows of a prompt that share a program of a fused pass; each prompt begins on a new tile


@torch.library.custom_op("predictors::paged_attention", mutates_args=("cache",))
def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, cache: Tensor, places: Tensor, pages: Tensor, spans: Tensor
) -> Tensor:
    """Attention output (tokens, heads, head_dim) for `sequences` of `tokens / sequences` rows each.

    q (tokens, heads, head_dim); k, v (tokens, kv_heads, head_dim); cache (2, pages, page_tokens,
    kv_heads, head_dim); places (tokens,) int64, where each row's key goes, counted in tokens from
    the cache's start; pages (sequences, n) int64, each sequence's pages in order; spans (sequences,
    2) int64 **on the CPU**: position of the first row and number of real rows (0: padding), so
    that lengths are known without asking the device. Rows that are not real come back as zeros.
    """
    keys, values = cache.flatten(1, 2).unbind(0)  # (pages * page_tokens, kv_heads, head_dim)
    keys.index_copy_(0, places, k)
    values.index_copy_(0, places, v)
    out = torch.zeros_like(q)
    rows_each = q.shape[0] // pages.shape[0]
    for i, (start, rows) in enumerate(spans.tolist()):
        if rows:
            mine = slice(i * rows_each, i * rows_each + rows)
            out[mine] = _attend(q[mine], cache, pages[i], start)
    return out


@paged_attention.register_fake
def _shape_only(
    q: Tensor, k: Tensor, v: Tensor, cache: Tensor, places: Tensor, pages: Tensor, spans: Tensor
) -> Tensor:
    return torch.empty_like(q)


def _attend(q: Tensor, cache: Tensor, pages: Tensor, start: int) -> Tensor:
    """q (rows, heads, head_dim) at positions start, start+1, ... over the sequence so far."""
    length = start + q.shape[0]
    page_tokens = cache.shape[2]
    own = cache.index_select(1, pages[: -(-length // page_tokens)])
    k, v = own.flatten(1, 2)[:, :length].transpose(1, 2)[
        :, None
    ]  # each (1, kv_heads, length, head_dim)
    mask = None
    if start > 0 and q.shape[0] > 1:  # row r sees keys up to start + r
        mask = torch.ones(q.shape[0], length, dtype=torch.bool, device=q.device).tril(start)
    is_causal = mask is None and q.shape[0] > 1
    queries = q.transpose(0, 1)[None]
    out = F.scaled_dot_product_attention(
        queries, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=True
    )
    return out[0].transpose(0, 1)
