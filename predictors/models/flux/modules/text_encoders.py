"""CLIP's and T5's text encoders as FLUX.1 reads them, with the parameter names and, to the bit on a
CPU, the results of transformers' `CLIPTextModel` and `T5EncoderModel`, whose import takes seconds.

There is no mask but CLIP's causal one: every prompt is padded to one length, and padding is read
like words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.models.flux.encoders import ClipShape, T5Shape
from predictors.models.flux.tokens import OLD_END_TOKEN


def _gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3.0))))


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATION_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_new,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
"""By transformers' names, in the order of operations of its `activations.py`."""


# -- CLIP ------------------------------------------------------------------------------------------
class ClipEmbeddings(nn.Module):
    """The sum of a token's and its place's embedding."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(shape.vocab, shape.dim)
        self.position_embedding = nn.Embedding(shape.positions, shape.dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids int64 (rows, tokens) to (rows, tokens, dim)."""
        words: Tensor = self.token_embedding(ids)
        return words + self.position_embedding.weight[: ids.shape[-1]]


class ClipAttention(nn.Module):
    """Causal attention of (rows, tokens, dim)."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.k_proj = nn.Linear(shape.dim, shape.dim)
        self.v_proj = nn.Linear(shape.dim, shape.dim)
        self.q_proj = nn.Linear(shape.dim, shape.dim)
        self.out_proj = nn.Linear(shape.dim, shape.dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=x.shape[1] > 1)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class ClipFeedForward(nn.Module):
    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.activation = ACTIVATION_FUNCTIONS[shape.activation]
        self.fc1 = nn.Linear(shape.dim, shape.mlp)
        self.fc2 = nn.Linear(shape.mlp, shape.dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class ClipLayer(nn.Module):
    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.self_attn = ClipAttention(shape)
        self.layer_norm1 = nn.LayerNorm(shape.dim, eps=shape.eps)
        self.mlp = ClipFeedForward(shape)
        self.layer_norm2 = nn.LayerNorm(shape.dim, eps=shape.eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class ClipLayers(nn.Module):
    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ClipLayer(shape) for _ in range(shape.layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class ClipTextEncoder(nn.Module):
    """CLIP's pooled state of prompts."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.embeddings = ClipEmbeddings(shape)
        self.encoder = ClipLayers(shape)
        self.final_layer_norm = nn.LayerNorm(shape.dim, eps=shape.eps)
        self.end_token = shape.end_token

    def forward(self, ids: Tensor) -> Tensor:
        """The state at the first end token, (rows, dim), for ids int64 (rows, tokens). No host
        sync."""
        states: Tensor = self.final_layer_norm(self.encoder(self.embeddings(ids)))
        marks = ids if self.end_token == OLD_END_TOKEN else ids.eq(self.end_token).int()
        rows = torch.arange(ids.shape[0], device=ids.device)
        return states[rows, marks.argmax(dim=-1)]


# -- T5 --------------------------------------------------------------------------------------------
class T5Norm(nn.Module):
    """Root mean square, in float32."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.dim))
        self.eps = shape.eps

    def forward(self, x: Tensor) -> Tensor:
        squares = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(squares + self.eps)
        if self.weight.dtype in (torch.float16, torch.bfloat16):
            x = x.to(self.weight.dtype)
        return self.weight * x


class T5Attention(nn.Module):
    """Attention of (rows, tokens, dim) with a bias; scores are not scaled."""

    def __init__(self, shape: T5Shape, *, has_bias: bool) -> None:
        super().__init__()
        inner = shape.heads * shape.head_dim
        self.heads, self.max_distance = shape.heads, shape.max_distance
        self.q = nn.Linear(shape.dim, inner, bias=False)
        self.k = nn.Linear(shape.dim, inner, bias=False)
        self.v = nn.Linear(shape.dim, inner, bias=False)
        self.o = nn.Linear(inner, shape.dim, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(shape.buckets, shape.heads)

    def bias(self, tokens: int) -> Tensor:
        """Of relative positions, (1, heads, tokens, tokens); not contiguous."""
        table = self.relative_attention_bias.weight
        places = torch.arange(tokens, dtype=torch.long, device=table.device)
        buckets = relative_buckets(places[None] - places[:, None], len(table), self.max_distance)
        values: Tensor = self.relative_attention_bias(buckets)
        return values.permute(2, 0, 1)[None]

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out


def relative_buckets(distances: Tensor, count: int, max_distance: int) -> Tensor:
    """Bucket numbers int64 of distances int64, half of them for either direction: one for each near
    distance, then wider ones, as in Mesh TensorFlow's `transformer_layers.py`."""
    half = count // 2
    signs = (distances > 0).to(torch.long) * half
    distances = distances.abs()
    near = half // 2
    ratios = torch.log(distances.float() / near) / math.log(max_distance / near)
    far = (near + (ratios * (half - near)).to(torch.long)).clamp_max(half - 1)
    return signs + torch.where(distances < near, distances, far)


class T5FeedForward(nn.Module):
    """Two linears, or with a gate three."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.activation, self.is_gated = ACTIVATION_FUNCTIONS[shape.activation], shape.is_gated
        if shape.is_gated:
            self.wi_0 = nn.Linear(shape.dim, shape.mlp, bias=False)
            self.wi_1 = nn.Linear(shape.dim, shape.mlp, bias=False)
        else:
            self.wi = nn.Linear(shape.dim, shape.mlp, bias=False)
        self.wo = nn.Linear(shape.mlp, shape.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_gated:
            inner = self.activation(self.wi_0(x)) * self.wi_1(x)
        else:
            inner = self.activation(self.wi(x))
        out: Tensor = self.wo(inner)
        return out


class T5AttentionLayer(nn.Module):
    def __init__(self, shape: T5Shape, *, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(shape, has_bias=has_bias)
        self.layer_norm = T5Norm(shape)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = x + self.SelfAttention(self.layer_norm(x), bias)
        return out


class T5FeedForwardLayer(nn.Module):
    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.DenseReluDense = T5FeedForward(shape)
        self.layer_norm = T5Norm(shape)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.DenseReluDense(self.layer_norm(x))
        return out


class T5Block(nn.Module):
    def __init__(self, shape: T5Shape, *, has_bias: bool) -> None:
        super().__init__()
        attention = T5AttentionLayer(shape, has_bias=has_bias)
        self.layer = nn.ModuleList((attention, T5FeedForwardLayer(shape)))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        attention, feed_forward = self.layer
        out: Tensor = feed_forward(attention(x, bias))
        return out


class T5Blocks(nn.Module):
    """All blocks; the first one's bias is that of all."""

    def __init__(self, shape: T5Shape, embed_tokens: nn.Embedding) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList(T5Block(shape, has_bias=i == 0) for i in range(shape.layers))
        self.final_layer_norm = T5Norm(shape)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.embed_tokens(ids)
        attention = self.block[0].get_submodule("layer.0.SelfAttention")
        assert isinstance(attention, T5Attention)
        bias = attention.bias(ids.shape[1])
        for block in self.block:
            states = block(states, bias)
            # fused kernels want it so, and the first block's results are older than this line
            bias = bias.contiguous() if bias.is_cuda else bias
        out: Tensor = self.final_layer_norm(states)
        return out


class T5TextEncoder(nn.Module):
    """T5's last states of prompts. Its embedding has two names and is one."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.shared = nn.Embedding(shape.vocab, shape.dim)
        self.encoder = T5Blocks(shape, self.shared)

    def forward(self, ids: Tensor) -> Tensor:
        """(rows, tokens, dim) for ids int64 (rows, tokens). No host sync."""
        states: Tensor = self.encoder(ids)
        return states
