"""Qwen2.5-VL's vision tower for one picture or one step of a film, over the operations that
`operations` has in plain torch and `fused` as kernels of a GPU. It asks the device for no value.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from predictors.chat.adapters.places import LinearPlace, mlp_places
from predictors.chat.decoder.layers import GatedMLP, RMSNorm
from predictors.chat.decoder.weights import linear_slots, mlp_slots
from predictors.chat.tensors import FRAMES, SECOND_FRAME
from predictors.models.qwen2_5_vl.vision.grid import VisionShape
from predictors.models.qwen2_5_vl.vision.operations import VisionOperations

VISION_EPS = 1e-6


class VisionAttention(nn.Module):
    """Weights of attention inside windows, or across the whole picture."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.qkv = nn.Linear(shape.hidden, 3 * shape.hidden)
        self.out = nn.Linear(shape.hidden, shape.hidden)


class VisionBlock(nn.Module):
    def __init__(self, shape: VisionShape, *, is_full: bool) -> None:
        super().__init__()
        self.is_full = is_full
        self.norm1 = RMSNorm(shape.hidden, VISION_EPS)
        self.attention = VisionAttention(shape)
        self.norm2 = RMSNorm(shape.hidden, VISION_EPS)
        self.mlp = GatedMLP(shape.hidden, shape.padded_mlp, bias=True)

    def forward(
        self, stream: Tensor, x: Tensor, following: RMSNorm, ops: VisionOperations
    ) -> tuple[Tensor, Tensor]:
        """The stream and its `following` norm, of the stream and its own first norm `x`."""
        mixed = ops.attend(ops.linear(x, self.attention.qkv), self.is_full)
        stream, x = ops.added(stream, ops.linear(mixed, self.attention.out), self.norm2)
        update = ops.linear(ops.gated(ops.linear(x, self.mlp.gate_up)), self.mlp.down)
        return ops.added(stream, update, following)


class Merger(nn.Module):
    """Four neighbouring patches become one token of the decoder's width."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        wide = shape.hidden * shape.merge**2
        self.norm = RMSNorm(shape.hidden, VISION_EPS)
        self.fc1 = nn.Linear(wide, wide)
        self.fc2 = nn.Linear(wide, shape.out)

    def forward(self, x: Tensor, ops: VisionOperations) -> Tensor:
        """Tokens of patches that are normed already."""
        merged = x.view(-1, self.fc1.in_features)
        return ops.linear(F.gelu(ops.linear(merged, self.fc1)), self.fc2)


class VisionTower(nn.Module):
    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.shape = shape
        self.patch_embed = nn.Linear(shape.patch_values, shape.hidden, bias=False)
        self.second_frame = nn.Linear(shape.patch_values, shape.hidden, bias=False)
        self.blocks = nn.ModuleList(
            VisionBlock(shape, is_full=i in shape.full_blocks) for i in range(shape.depth)
        )
        self.merger = Merger(shape)

    def forward(self, patches: Tensor, ops: VisionOperations) -> Tensor:
        """Tokens (merged, out) for `patches` (patches, channels * patch * patch) of a picture, or
        twice as many columns of two frames, both in picture order; `ops` know the grid."""
        blocks = [block for block in self.blocks if isinstance(block, VisionBlock)]
        norms = [block.norm1 for block in blocks] + [self.merger.norm]
        stream = ops.embed(patches, self.patch_embed, self.second_frame)
        x = ops.normed(stream, norms[0])
        for block, (_, following) in zip(blocks, pairwise(norms), strict=True):
            stream, x = block(stream, x, following, ops)
        return ops.restored(self.merger(x, ops))


def vision_slots(vision: VisionTower) -> dict[str, Tensor]:
    slots = {
        FRAMES: vision.patch_embed.weight.data,
        SECOND_FRAME: vision.second_frame.weight.data,
        "visual.merger.ln_q.weight": vision.merger.norm.weight.data,
    }
    slots |= linear_slots("visual.merger.mlp.0", vision.merger.fc1)
    slots |= linear_slots("visual.merger.mlp.2", vision.merger.fc2)
    for i, block in enumerate(vision.blocks):
        assert isinstance(block, VisionBlock)
        prefix = f"visual.blocks.{i}"
        slots[f"{prefix}.norm1.weight"] = block.norm1.weight.data
        slots[f"{prefix}.norm2.weight"] = block.norm2.weight.data
        slots |= linear_slots(f"{prefix}.attn.qkv", block.attention.qkv)
        slots |= linear_slots(f"{prefix}.attn.proj", block.attention.out)
        slots |= mlp_slots(f"{prefix}.mlp", block.mlp, vision.shape.mlp, ("weight", "bias"))
    return slots


def vision_places(vision: VisionTower) -> dict[str, LinearPlace]:
    """The layers of the tower's linears, for adapters."""
    shape, merger = vision.shape, vision.merger
    found = {
        FRAMES.removesuffix(".weight"): LinearPlace.of(vision.patch_embed),
        "visual.merger.mlp.0": LinearPlace.of(merger.fc1),
        "visual.merger.mlp.2": LinearPlace.of(merger.fc2),
    }
    for i, block in enumerate(vision.blocks):
        assert isinstance(block, VisionBlock)
        prefix, mlp = f"visual.blocks.{i}", block.mlp
        found[f"{prefix}.attn.qkv"] = LinearPlace.of(block.attention.qkv)
        found[f"{prefix}.attn.proj"] = LinearPlace.of(block.attention.out)
        sizes = (shape.hidden, shape.padded_mlp)
        found |= mlp_places(f"{prefix}.mlp", mlp.gate_up, mlp.down, *sizes)
    return found
