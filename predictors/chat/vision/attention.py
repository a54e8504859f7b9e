"""Full attention over one picture in a pass of more rows than the picture has patches.

The fastest attention kernels take no mask. So each head gets one more feature, which makes every
score of a row beyond the picture vanish.
"""

from __future__ import annotations

from torch import Tensor

from predictors.chat.decoder.fused_linears import power_of_two
from predictors.chat.vision.kernels import heads_kernel
from predictors.chat.vision.shape import TowerShape
from predictors.compute.device.placement import Placement
from predictors.compute.kernels.attention import Attention, choose_attention


def padded_head(head_dim: int) -> int:
    """A head's features and the one that hides rows, rounded up to a multiple of 8 for kernels."""
    return -(-(head_dim + 1) // 8) * 8


def fastest_attention(shape: TowerShape, num_patches: int, placement: Placement) -> Attention:
    """The fastest attention of a tower on this GPU, for pictures of up to `num_patches`."""
    padded = padded_head(shape.head_dim)
    return choose_attention(placement, shape.heads, padded, num_patches).attention


def attend_picture(
    qkv: Tensor, cos: Tensor, sin: Tensor, count: Tensor, heads: int, attention: Attention
) -> Tensor:
    """The joined heads (rows, hidden) of qkv (rows, 3 hidden), q and k rotated by cos, sin (rows,
    head_dim) fp32, each row over the first `count` (1,) rows. `attention` takes heads of
    `padded_head` features. Rows beyond the picture may hold anything, and so does their result."""
    rows, dim = len(qkv), cos.shape[1]
    padded = padded_head(dim)
    packed = qkv.new_empty(rows, 3, heads, padded)
    heads_kernel[(rows,)](
        qkv,
        cos,
        sin,
        count,
        packed,
        FACTOR=(padded / dim) ** 0.5,  # the attention will divide by the root of `padded`
        HEADS=heads,
        DIM=dim,
        PADDED=padded,
        BLOCK_HEADS=power_of_two(heads),
        BLOCK=power_of_two(padded),
        num_warps=4,
    )
    query, key, value = packed[None].transpose(1, 3).unbind(2)  # (1, heads, rows, padded)
    mixed = attention(query, key, value).view(rows, heads, padded)
    return mixed[..., :dim].reshape(rows, heads * dim)
