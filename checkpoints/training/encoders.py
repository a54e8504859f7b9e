"""Forward passes of T5's and CLIP's text encoders over the weights of the transformers modules.

They give the numbers of transformers (a test compares them), without masks, caches and host
synchronisations, so that a whole training step fits into one CUDA graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel


def _rms(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def t5_buckets(model: T5EncoderModel, length: int) -> Tensor:
    """The relative position bucket of every pair of positions, [length, length]."""
    attention = model.encoder.block[0].layer[0].SelfAttention
    device = attention.relative_attention_bias.weight.device
    place = torch.arange(length, device=device)
    buckets: Tensor = attention._relative_position_bucket(
        place[None, :] - place[:, None],
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    return buckets


def t5_states(model: T5EncoderModel, ids: Tensor, buckets: Tensor) -> Tensor:
    """Last hidden states of T5 without an attention mask, as in FluxPipeline."""
    heads = model.config.num_heads
    x = F.embedding(ids, model.shared.weight)
    batch, length, _ = x.shape
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias(buckets)
    bias = bias.permute(2, 0, 1)[None]
    for block in model.encoder.block:
        attention, norm = block.layer[0].SelfAttention, block.layer[0].layer_norm
        normed = _rms(x, norm.weight)
        q, k, v = (
            linear(normed).view(batch, length, heads, -1).transpose(1, 2)
            for linear in (attention.q, attention.k, attention.v)
        )
        weights = (q @ k.transpose(-1, -2) + bias).softmax(-1)
        x = x + attention.o((weights @ v).transpose(1, 2).reshape(batch, length, -1))
        dense, norm = block.layer[1].DenseReluDense, block.layer[1].layer_norm
        normed = _rms(x, norm.weight)
        x = x + dense.wo(F.gelu(dense.wi_0(normed), approximate="tanh") * dense.wi_1(normed))
    return _rms(x, model.encoder.final_layer_norm.weight)


def clip_pooled(model: CLIPTextModel, ids: Tensor) -> Tensor:
    """CLIP's pooled output: the last state at the first end of text.

    Attention is causal, so ids may be cut behind the first end of text.
    """
    heads = model.config.num_attention_heads
    batch, length = ids.shape
    x = F.embedding(ids, model.embeddings.token_embedding.weight)
    x = x + model.embeddings.position_embedding.weight[:length]
    for layer in model.encoder.layers:
        normed, attention = layer.layer_norm1(x), layer.self_attn
        q, k, v = (
            linear(normed).view(batch, length, heads, -1).transpose(1, 2)
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attention.out_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        inner = layer.mlp.fc1(layer.layer_norm2(x))
        x = x + layer.mlp.fc2(inner * torch.sigmoid(1.702 * inner))
    x = model.final_layer_norm(x)
    end = (ids == model.config.eos_token_id).int().argmax(1)
    return x.gather(1, end[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]
