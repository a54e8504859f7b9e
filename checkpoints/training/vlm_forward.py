"""The forward pass of Qwen2.5-VL for one picture size over the weights of the transformers module.

Everything that depends only on the size (windows, rotary tables, masks) is computed once, and there
are no host synchronisations, so a training step fits into one CUDA graph. It gives the numbers of
transformers (a test compares them).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from checkpoints.training.export import IMAGE_MEAN, IMAGE_STD


def to_patches(pictures: Tensor, patch: int = 14, merge: int = 2, frames: int = 2) -> Tensor:
    """uint8 or float pictures [n, 3, h, w] in 0..255 as normalised patches [n, cells, 1176].

    With one frame they have half as many numbers, and `see` gives the same for less work.
    """
    # Channel by channel: a constant tensor would be copied from the host in every step.
    planes = pictures.float() / 255
    normal = [(planes[:, c] - IMAGE_MEAN[c]) / IMAGE_STD[c] for c in range(3)]
    x = torch.stack(normal, dim=1)
    batch, channels, height, width = x.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    x = x.reshape(batch, channels, rows, merge, patch, columns, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    x = x.expand(-1, -1, -1, -1, -1, -1, frames, -1, -1)
    return x.reshape(batch, rows * columns * merge * merge, -1)


def resize(pictures: Tensor, side: int = 140) -> Tensor:
    """The image processor's bicubic resize of uint8 pictures, rounded to uint8 again."""
    big = F.interpolate(pictures.float(), (side, side), mode="bicubic", antialias=True)
    return big.round().clamp(0, 255).to(torch.uint8)


def _rotate_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class Forward(nn.Module):
    """Logits of a batch of conversations, each with one picture of `side` pixels (or none)."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, side: int = 140) -> None:
        super().__init__()
        self.model = model
        vision = model.config.vision_config
        self.heads = vision.num_heads
        cells = side // 28
        self.cells = cells
        row, column = self._patch_places(cells)
        window = vision.window_size // 28
        name = (row // 2 // window) * 100 + column // 2 // window
        apart = name[:, None] != name[None, :]
        quarter = vision.hidden_size // vision.num_heads // 4
        frequency = 1.0 / 10000.0 ** (torch.arange(quarter) / quarter)
        angle = torch.cat((row[:, None] * frequency, column[:, None] * frequency), dim=-1)
        angle = torch.cat((angle, angle), dim=-1)
        self.register_buffer("vision_cos", angle.cos(), persistent=False)
        self.register_buffer("vision_sin", angle.sin(), persistent=False)
        closed = torch.zeros(apart.shape).masked_fill(apart, float("-inf"))
        self.register_buffer("window_mask", closed[None, None], persistent=False)
        text = model.config.text_config
        half = text.hidden_size // text.num_attention_heads // 2
        frequency = 1.0 / text.rope_parameters["rope_theta"] ** (torch.arange(half) / half)
        self.register_buffer("text_frequency", frequency, persistent=False)
        sections = text.rope_parameters["mrope_section"]
        axis = [number for number, size in enumerate(sections) for _ in range(size)]
        self.register_buffer("text_axis", torch.tensor(axis), persistent=False)

    @staticmethod
    def _patch_places(cells: int) -> tuple[Tensor, Tensor]:
        """Row and column of every patch in the merged order of the processor."""
        place = torch.arange(2 * cells)
        row, column = torch.meshgrid(place, place, indexing="ij")
        order = (cells, 2, cells, 2)
        return (
            row.reshape(order).permute(0, 2, 1, 3).reshape(-1),
            column.reshape(order).permute(0, 2, 1, 3).reshape(-1),
        )

    def see(self, patches: Tensor) -> Tensor:
        """Picture tokens [n, cells, width] of patches [n, 4 * cells, 1176]."""
        tower = self.model.model.visual
        weight = tower.patch_embed.proj.weight
        if patches.shape[-1] < weight[0].numel():  # one frame: both halves see the same
            weight = weight.sum(2)
        x = F.linear(patches.to(weight.dtype), weight.flatten(1))
        batch, length, width = x.shape
        cos, sin = self.vision_cos.to(x.dtype), self.vision_sin.to(x.dtype)
        mask = self.window_mask.to(x.dtype)
        for index, block in enumerate(tower.blocks):
            normed = F.rms_norm(x, (width,), block.norm1.weight, 1e-6)
            qkv = block.attn.qkv(normed).view(batch, length, 3, self.heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            q = q * cos + _rotate_half(q) * sin
            k = k * cos + _rotate_half(k) * sin
            whole = index in tower.fullatt_block_indexes
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=None if whole else mask)
            x = x + block.attn.proj(mixed.transpose(1, 2).reshape(batch, length, width))
            x = x + block.mlp(F.rms_norm(x, (width,), block.norm2.weight, 1e-6))
        merger = tower.merger
        x = F.rms_norm(x, (width,), merger.ln_q.weight, 1e-6)
        merged: Tensor = merger.mlp(x.reshape(batch, length // 4, 4 * width))
        return merged

    def forward(self, patches: Tensor, ids: Tensor, slot: Tensor, position: Tensor) -> Tensor:
        """Logits [n, length, vocabulary].

        `slot` says which picture token stands at a place (-1: none); `position` is M-RoPE's,
        [n, 3, length].
        """
        return self.read(self.see(patches), ids, slot, position)

    def read(
        self,
        seen: Tensor,
        ids: Tensor,
        slot: Tensor,
        position: Tensor,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Logits of the decoder alone, for the picture tokens of `see`.

        `allowed` [n, 1, length, length] is a mask of attention instead of the causal one.
        """
        decoder = self.model.model.language_model
        config = self.model.config.text_config
        x = F.embedding(ids, decoder.embed_tokens.weight)
        batch, length, width = x.shape
        picked = seen.to(x.dtype).gather(1, slot.clamp_min(0)[:, :, None].expand(-1, -1, width))
        x = torch.where(slot[:, :, None] >= 0, picked, x)
        angle = position[:, self.text_axis].transpose(1, 2).float() * self.text_frequency
        angle = torch.cat((angle, angle), dim=-1)[:, None]
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        eps, groups = config.rms_norm_eps, config.num_attention_heads // config.num_key_value_heads
        for layer in decoder.layers:
            attention = layer.self_attn
            normed = F.rms_norm(x, (width,), layer.input_layernorm.weight, eps)
            q, k, v = (
                linear(normed).view(batch, length, -1, attention.head_dim).transpose(1, 2)
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q = q * cos + _rotate_half(q) * sin
            k = k * cos + _rotate_half(k) * sin
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=allowed, is_causal=allowed is None
            )
            mixed = mixed.transpose(1, 2).reshape(batch, length, width)
            x = x + attention.o_proj(mixed)
            normed = F.rms_norm(x, (width,), layer.post_attention_layernorm.weight, eps)
            x = x + layer.mlp(normed)
        x = F.rms_norm(x, (width,), decoder.norm.weight, eps)
        return F.linear(x, decoder.embed_tokens.weight)
