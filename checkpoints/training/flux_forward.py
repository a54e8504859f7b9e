"""The forward pass of FLUX's transformer over the weights of the diffusers module, for training.

It gives the numbers of diffusers (a test compares them), with the time in fp32, no host
synchronisation and fewer kernels, so that a whole step fits into one CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor

Tables = tuple[Tensor, Tensor]


def signed(tables: Tables) -> Tables:
    """diffusers' tables, the sine negative at the first of each pair."""
    cos, sin = tables
    sign = torch.ones_like(sin)
    sign[..., ::2] = -1
    return cos, sin * sign


def _turn(x: Tensor, tables: Tables) -> Tensor:
    """Rotary embedding of [n, heads, length, dim], neighbours paired; tables are `signed`, fp32."""
    cos, sin = tables
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * cos + swapped * sin).to(x.dtype)


def _heads(x: Tensor, linear: Any, norm: Any, count: int) -> Tensor:
    """Project and split into [n, heads, length, dim], normalising queries and keys."""
    split = linear(x).unflatten(-1, (count, -1)).transpose(1, 2)
    if norm is None:
        return split
    return F.rms_norm(split, (split.shape[-1],), norm.weight, 1e-6)


def _norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def _mix(q: Tensor, k: Tensor, v: Tensor, tables: Tables) -> Tensor:
    mixed = F.scaled_dot_product_attention(_turn(q, tables), _turn(k, tables), v)
    return mixed.transpose(1, 2).flatten(2)


def _double(
    block: Any, text: Tensor, x: Tensor, act: Tensor, tables: Tables
) -> tuple[Tensor, Tensor]:
    attention, heads, length = block.attn, block.attn.heads, text.shape[1]
    shift, scale, gate, shift_2, scale_2, gate_2 = block.norm1.linear(act).chunk(6, dim=1)
    t_shift, t_scale, t_gate, t_shift_2, t_scale_2, t_gate_2 = block.norm1_context.linear(
        act
    ).chunk(6, dim=1)
    normed, t_normed = _norm(x, scale, shift), _norm(text, t_scale, t_shift)
    q, k, v = (
        torch.cat((_heads(t_normed, t_in, t_norm, heads), _heads(normed, x_in, x_norm, heads)), 2)
        for t_in, t_norm, x_in, x_norm in (
            (attention.add_q_proj, attention.norm_added_q, attention.to_q, attention.norm_q),
            (attention.add_k_proj, attention.norm_added_k, attention.to_k, attention.norm_k),
            (attention.add_v_proj, None, attention.to_v, None),
        )
    )
    mixed = _mix(q, k, v, tables)
    x = x + gate[:, None] * attention.to_out[0](mixed[:, length:])
    text = text + t_gate[:, None] * attention.to_add_out(mixed[:, :length])
    x = x + gate_2[:, None] * block.ff(_norm(x, scale_2, shift_2))
    text = text + t_gate_2[:, None] * block.ff_context(_norm(text, t_scale_2, t_shift_2))
    return text, x


def _single(block: Any, x: Tensor, act: Tensor, tables: Tables) -> Tensor:
    attention, heads = block.attn, block.attn.heads
    shift, scale, gate = block.norm.linear(act).chunk(3, dim=1)
    normed = _norm(x, scale, shift)
    q = _heads(normed, attention.to_q, attention.norm_q, heads)
    k = _heads(normed, attention.to_k, attention.norm_k, heads)
    v = _heads(normed, attention.to_v, None, heads)
    inner = F.gelu(block.proj_mlp(normed), approximate="tanh")
    return x + gate[:, None] * block.proj_out(torch.cat((_mix(q, k, v, tables), inner), dim=2))


def velocity(
    model: FluxTransformer2DModel,
    latents: Tensor,
    states: Tensor,
    pooled: Tensor,
    sigma: Tensor,
    guidance: Tensor,
    tables: Tables,
) -> Tensor:
    """The velocity at `sigma` (0 to 1, fp32) of packed latents [n, tokens, 64]."""
    act = F.silu(model.time_text_embed(sigma * 1000, guidance * 1000, pooled))
    x, text = model.x_embedder(latents), model.context_embedder(states)
    for block in model.transformer_blocks:
        text, x = _double(block, text, x, act, tables)
    length = text.shape[1]
    x = torch.cat((text, x), dim=1)
    for block in model.single_transformer_blocks:
        x = _single(block, x, act, tables)
    scale, shift = model.norm_out.linear(act).chunk(2, dim=1)
    out: Tensor = model.proj_out(_norm(x[:, length:], scale, shift))
    return out
