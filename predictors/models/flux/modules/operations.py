"""The operations that a transformer's blocks are made of, in plain torch, for any device.

These are the reference for `fused.py`, which does the same with fewer passes over memory.

    token            0            T                              T + I
    Carry.tokens     | text       | picture                      |   (rows, T + I, dim)
    Carry.update     | text       | picture                      |   (rows, T + I, dim)
    Carry.gate       | .text      | .image                       |   Streams of (rows, 1, dim)
    next tokens      = tokens + gate * update, each token with its own stream's gate

Both streams are views of one buffer, text first, so that a GPU never concatenates them. `Streams`
holds what differs between them: gate, shift and scale, layers, norms.

Batch invariance: a row's bits must not depend on how many rows share the pass. Matmuls choose
their blocking by the number of rows, and vectorised GELU handles the tail of each thread's share
with other instructions, so both run row by row (`apart`). Attention, norms, multiply and add give
each row the same bits beside any others (tests/models/flux/test_blocks.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.compute.kernels.fp8 import Fp8Linear, RowScaled, dequantized, quantize_rows
from predictors.models.flux.modules.rotary import rotate

EPS = 1e-6
FLOAT16_MAX = 65504.0

T = TypeVar("T")

Activations = Any
"""The input of a linear: a Tensor (rows, tokens, features), or `RowScaled` of that shape in fp8.
Only the `Operations` that made it read it."""


class Streams(NamedTuple, Generic[T]):
    """A value for the text's tokens and one for the picture's; the same object if they share it."""

    text: T
    image: T

    @property
    def are_one(self) -> bool:
        return self.text is self.image


def shared(value: T) -> Streams[T]:
    return Streams(value, value)


class Change(NamedTuple):
    """The modulation after a norm, each (rows, 1, dim) per stream."""

    shift: Streams[Tensor]
    scale: Streams[Tensor]


class Carry(NamedTuple):
    """The residual stream between two blocks: `tokens + gate * update`, not yet summed.

    The next block needs the sum and its norm, which are one pass over memory on a GPU. Before the
    first block `update` and `gate` are None.
    """

    tokens: Tensor
    """(rows, T + I, dim)."""
    update: Tensor | None
    gate: Streams[Tensor] | None


class Layer(Protocol):
    """An `nn.Linear`, or an `Fp8Linear` where the operations are fp8."""

    @property
    def weight(self) -> Tensor:
        """(out, in)."""

    @property
    def bias(self) -> Tensor:
        """(out,)."""

    def __call__(self, *inputs: Any) -> Any: ...


class Norms(NamedTuple):
    """RMS norms of query and key over head_dim."""

    query: nn.RMSNorm
    key: nn.RMSNorm


class Operations(Protocol):
    """A block's operations. `num_text` is T: the first T tokens of each row are the text's."""

    @property
    def unquantized(self) -> Operations:
        """The same in the dtype of the weights, for linears that are never fp8."""

    def add_and_norm(
        self, carry: Carry, change: Change, num_text: int
    ) -> tuple[Tensor, Activations]:
        """The sum (rows, T + I, dim), and its layer norm scaled and shifted, ready for a linear."""

    def linear(self, x: Activations, layers: Streams[Layer], num_text: int) -> Tensor:
        """(rows, T + I, in) through each stream's layer to (rows, T + I, out)."""

    def end(self, x: Tensor, layer: Layer) -> Tensor:
        """(rows, tokens, in) through the first or the last linear, never fp8."""

    def attend(self, qkv: Tensor, norms: Streams[Norms], rotary: Tensor, num_text: int) -> Tensor:
        """Full attention over qkv (rows, tokens, 3 * dim): (rows, tokens, dim).

        Query and key are normed per head and rotated by rotary, float32 (2, tokens, head_dim / 2).
        May overwrite qkv.
        """

    def project(self, mixed: Tensor, layers: Streams[Layer], num_text: int) -> Tensor:
        """Attention's result (rows, tokens, dim) through each stream's layer, the same shape."""

    def mlp(
        self,
        x: Activations,
        up: Streams[Layer],
        down: Streams[Layer],
        num_text: int,
    ) -> Tensor:
        """Linear, GELU (tanh), linear: (rows, tokens, dim) to the same shape."""

    def project_joined(self, mixed: Tensor, x: Activations, up: Layer, down: Layer) -> Tensor:
        """Attention's result beside GELU(up(x)), both through one linear: (rows, tokens, dim)."""


def apart(layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`layer` on each row of (rows, tokens, features) alone, so that rows don't change its bits."""
    rows = zip(*(x.split(1) for x in inputs), strict=True)
    outputs = [layer(*row) for row in rows]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def per_stream(
    function: Callable[..., Tensor], x: Tensor, num_text: int, *things: Streams[Any]
) -> Tensor:
    """`function(part of x, its stream's things)` per stream; one call if all things are shared."""
    if all(thing.are_one for thing in things):
        return function(x, *(thing.image for thing in things))
    text = function(x[:, :num_text], *(thing.text for thing in things))
    image = function(x[:, num_text:], *(thing.image for thing in things))
    return torch.cat((text, image), dim=1)


class Plain:
    """The reference: every operation as torch has it."""

    @property
    def unquantized(self) -> Operations:
        return self

    def add_and_norm(
        self, carry: Carry, change: Change, num_text: int
    ) -> tuple[Tensor, Activations]:
        tokens = carry.tokens
        if carry.update is not None and carry.gate is not None:
            update = per_stream(torch.mul, carry.update, num_text, carry.gate)
            tokens = in_range(tokens + update)
        return tokens, self.prepared(per_stream(modulate, tokens, num_text, *change))

    def linear(self, x: Activations, layers: Streams[Layer], num_text: int) -> Tensor:
        return per_stream(lambda part, layer: apart(layer, part), x, num_text, layers)

    def end(self, x: Tensor, layer: Layer) -> Tensor:
        return apart(layer, x)

    def attend(self, qkv: Tensor, norms: Streams[Norms], rotary: Tensor, num_text: int) -> Tensor:
        head_dim = 2 * rotary.shape[-1]
        query, key, value = qkv.unflatten(-1, (3, -1, head_dim)).unbind(2)
        query = per_stream(_norm_query, query, num_text, norms)
        key = per_stream(_norm_key, key, num_text, norms)
        heads = (rotate(query, rotary), rotate(key, rotary), value)
        query, key, value = (x.transpose(1, 2) for x in heads)  # heads first
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    def project(self, mixed: Tensor, layers: Streams[Layer], num_text: int) -> Tensor:
        return self.linear(self.prepared(mixed), layers, num_text)

    def mlp(
        self,
        x: Activations,
        up: Streams[Layer],
        down: Streams[Layer],
        num_text: int,
    ) -> Tensor:
        return self.project(apart(_gelu, self.linear(x, up, num_text)), down, num_text)

    def project_joined(self, mixed: Tensor, x: Activations, up: Layer, down: Layer) -> Tensor:
        wide = apart(_gelu, self.linear(x, shared(up), 0))
        return self.project(torch.cat((mixed, wide), dim=-1), shared(down), 0)

    def prepared(self, x: Tensor) -> Activations:
        """The input of a linear, from (rows, tokens, features)."""
        return x


class PlainFp8(Plain):
    """`Plain` with linears in fp8: activations are scaled per token, weights per output feature.

    Products are summed in float32 of the rounded values, as the hardware does.
    """

    @property
    def unquantized(self) -> Operations:
        return Plain()

    def prepared(self, x: Tensor) -> Activations:
        """Features in e4m3, with a scale per token."""
        return quantize_rows(x)

    def linear(self, x: RowScaled, layers: Streams[Layer], num_text: int) -> Tensor:
        def each(part: Tensor, layer: Fp8Linear) -> Tensor:
            return apart(layer.reference, part)

        return per_stream(each, dequantized(x), num_text, layers)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm of x (rows, tokens, dim) with its row's shift and scale (rows, 1, dim)."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def in_range(x: Tensor) -> Tensor:
    """`x` clipped to float16's range, which FLUX's largest activations pass, as in diffusers."""
    return x.clip(-FLOAT16_MAX, FLOAT16_MAX) if x.dtype == torch.float16 else x


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _norm_query(x: Tensor, norms: Norms) -> Tensor:
    normed: Tensor = norms.query(x)
    return normed


def _norm_key(x: Tensor, norms: Norms) -> Tensor:
    normed: Tensor = norms.key(x)
    return normed
