"""FLUX.1's forward passes on a device: text encoders, modulations, transformer and decoder.

On a GPU the transformer and the decoder are made of fused operations, which the runner captures in
CUDA graphs. Elsewhere they are plain torch, and compiled block by block for promised shapes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from predictors.compute.compile.compiling import compiled
from predictors.compute.device.placement import Placement
from predictors.compute.kernels.attention import choose_attention, fp8_attention
from predictors.compute.low_rank import LowRankTable, RankRows
from predictors.diffusion.adapters import AppliedChange
from predictors.diffusion.model import Embedding, LoadOptions
from predictors.diffusion.request import BASE, FP8
from predictors.diffusion.sampling import pack_patches, unpack_patches
from predictors.models.flux.adaptable import adapter_places, step_linears
from predictors.models.flux.config import FluxConfig
from predictors.models.flux.modules import decoder as decoding
from predictors.models.flux.modules import encoder as encoding
from predictors.models.flux.modules.adapted import (
    AdaptedPlain,
    AdaptedPlainFp8,
    Adapters,
    adapted,
)
from predictors.models.flux.modules.operations import Operations, Plain, PlainFp8
from predictors.models.flux.modules.rotary import rotary_table
from predictors.models.flux.modules.transformer import (
    EAGER,
    BlockUnits,
    DoubleBlock,
    Ends,
    SingleBlock,
    forward_pieces,
)
from predictors.models.flux.weights import Parts

log = logging.getLogger(__name__)

AdaptedForm = Callable[[Adapters], Operations]


class FluxPasses:
    """Implements `AdaptedPasses`, `EncodingPasses` and `PiecewisePasses`."""

    def __init__(
        self,
        name: str,
        config: FluxConfig,
        parts: Parts,
        placement: Placement,
        options: LoadOptions,
    ) -> None:
        self._config = config
        self.parts = parts
        self._dtype = placement.dtype
        self._operations: Mapping[str, Operations] = {BASE: Plain(), FP8: PlainFp8()}
        self._adapted: Mapping[str, AdaptedForm] = {BASE: AdaptedPlain, FP8: AdaptedPlainFp8}
        self.tables = _make_tables(config, placement, options.rank_rows)
        self._tables_of = {
            form: {transformer.get_submodule(path): table for path, table in self.tables.items()}
            for form, transformer in parts.transformers.items()
        }
        self._modules: Mapping[str, nn.Module] = {
            "conditioning": parts.conditioning,
            "clip": parts.clip,
            "t5": parts.t5,
        }
        self._decoding: decoding.Operations = decoding.PLAIN
        self._encoding: encoding.EncodingOperations = encoding.PLAIN
        self._units, self._decode = EAGER, decoding.decode
        self.attention = "sdpa"
        if placement.is_cuda:
            self._use_fused_operations(name, placement, options)
        else:
            self._units = _compiled_units(placement)
            # aot_eager gives the decoder's group norm strides it then refuses (torch 2.11)
            if placement.compile == "inductor":
                self._decode = compiled(decoding.decode, placement, "flux_decoder")

    def _use_fused_operations(self, name: str, placement: Placement, options: LoadOptions) -> None:
        # these need Triton
        from predictors.models.flux.modules.adapted_fused import AdaptedFused, AdaptedFusedFp8
        from predictors.models.flux.modules.decoder_fused import Fused as FusedDecoding
        from predictors.models.flux.modules.encoder_fused import FusedEncoding
        from predictors.models.flux.modules.fused import Fused, FusedFp8

        shape = self._config.shape
        choice = choose_attention(
            placement, shape.num_heads, shape.head_dim, options.longest_sequence
        )
        choice.announce(name)
        narrow = fp8_attention(placement, shape.head_dim) if options.fp8_attention else None
        log.info("%s: attention of fp8 weights in %s", name, "fp8" if narrow else "their own")
        self.attention = choice.name
        self._operations = {
            BASE: Fused(choice.attention),
            FP8: FusedFp8(choice.attention, narrow),
        }
        self._adapted = {
            BASE: partial(AdaptedFused, choice.attention),
            FP8: partial(AdaptedFusedFp8, choice.attention, narrow),
        }
        self._decoding = FusedDecoding(self.parts.decoder)
        if self.parts.encoder is not None:
            self._encoding = FusedEncoding(self.parts.encoder)

    def encode(self, *ids: Tensor) -> tuple[Tensor, Tensor]:
        """T5's states after the context embedder, (T, dim), and CLIP's pooled state, (features,),
        for one prompt: clip_ids (1, 77), t5_ids (1, T)."""
        (clip_ids, t5_ids), parts = ids, self.parts
        pooled = parts.clip(clip_ids)[0].to(self._dtype)
        states = parts.t5(t5_ids)[0].to(self._dtype)
        return parts.conditioning.context(states), pooled

    def modulations(
        self, timesteps: Tensor, guidance: Tensor, prompts: Sequence[Embedding]
    ) -> Tensor:
        pooled = torch.stack([prompt.pooled[0] for prompt in prompts])
        return self.parts.conditioning.modulations(timesteps, guidance, pooled)

    def positions(
        self, num_text: int, rows: int, columns: int, reference: tuple[int, int] = (0, 0)
    ) -> Tensor:
        return rotary_table(num_text, rows, columns, self._config.shape.rotary_axes, reference)

    def velocity(self, form: str, *, is_promised: bool) -> Callable[..., Tensor]:
        units = self._units if is_promised else EAGER
        return partial(self.parts.transformers[form], self._operations[form], units)

    def adapted(self, changes: Sequence[AppliedChange]) -> AbstractContextManager[None]:
        return adapted(self._modules, changes)

    def adapted_velocity(self, form: str) -> Callable[..., Tensor]:
        transformer, tables = self.parts.transformers[form], self._tables_of[form]
        operations = self._adapted[form]

        def velocity(*inputs: Tensor) -> Tensor:
            *own, index, scales = inputs
            ops = operations(Adapters(tables, RankRows(index, scales)))
            made: Tensor = transformer(ops, EAGER, *own)
            return made

        return velocity

    def velocity_pieces(
        self, form: str, count: int, *, is_promised: bool, is_adapted: bool
    ) -> Sequence[Callable[..., Any]]:
        """As `PiecewisePasses`."""
        transformer = self.parts.transformers[form]
        if is_adapted:
            tables, adapted_form = self._tables_of[form], self._adapted[form]

            def operations(index: Tensor, scales: Tensor) -> Operations:
                return adapted_form(Adapters(tables, RankRows(index, scales)))

            return forward_pieces(transformer, operations, EAGER, count)
        units, own = self._units if is_promised else EAGER, self._operations[form]
        return forward_pieces(transformer, lambda: own, units, count)

    def unpacked(self, latents: Tensor, rows: int, columns: int) -> Tensor:
        """(rows * columns, 64) to (1, 16, 2 * rows, 2 * columns), unscaled and unshifted."""
        unpacked = unpack_patches(latents[None], rows, columns)
        return unpacked / self._config.latent_scale + self._config.latent_shift

    def decoder(self, *, is_promised: bool) -> Callable[[Tensor], Tensor]:
        decode = self._decode if is_promised else decoding.decode
        return partial(decode, self.parts.decoder, operations=self._decoding)

    def encoder(self, *, is_promised: bool) -> Callable[[Tensor, Tensor], Tensor]:
        encoder = self.parts.encoder
        assert encoder is not None
        return partial(encoding.encode, encoder, operations=self._encoding)

    def encoded_latents(self, moments: Tensor, sample: Tensor) -> Tensor:
        latents = encoding.sampled(moments, sample)
        latents = (latents - self._config.latent_shift) * self._config.latent_scale
        return pack_patches(latents)[0]


def _make_tables(
    config: FluxConfig, placement: Placement, num_rows: int
) -> dict[str, LowRankTable]:
    """By the transformer's linears; none for no rows."""
    linears = step_linears(adapter_places(config)) if num_rows else {}
    return {
        path: LowRankTable(sizes, num_rows, placement.device, placement.dtype)
        for path, sizes in linears.items()
    }


def _compiled_units(placement: Placement) -> BlockUnits:
    return BlockUnits(
        double=compiled(DoubleBlock.forward, placement, "flux_double_block"),
        single=compiled(SingleBlock.forward, placement, "flux_single_block"),
        ends=compiled(Ends.forward, placement, "flux_ends"),
    )
