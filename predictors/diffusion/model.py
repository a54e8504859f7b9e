"""The Protocols that a flow-matching picture model implements to be served by this engine.

`DiffusionModel` is a checkpoint whose configs and tokenizers were read; `load` makes of it
`DiffusionPasses`, its forward passes with the weights on a device. T counts a prompt's text tokens,
I a picture's latent patches (rows x columns), C a patch's channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from predictors.compute.device.placement import Placement
from predictors.compute.low_rank import LowRankTable
from predictors.diffusion.adapters import AdapterPlace, AppliedChange
from predictors.diffusion.request import SourcePicture
from predictors.diffusion.sampling import Schedule
from predictors.diffusion.sources import SourceInputs

PromptKey = tuple[str, int]
"""The text and T: an embedding depends on nothing else."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One tokenized text, on the host."""

    key: PromptKey
    ids: tuple[Tensor, ...]
    """Token ids of each text encoder, int64 (1, its length)."""
    num_read: int
    """Tokens of the text that were kept, padding excluded."""
    num_unread: int = 0
    """Tokens of the text that were cut off."""

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.key[1]


class Embedding(NamedTuple):
    """One encoded prompt, on the device."""

    context: Tensor
    """(T, dim), read by every denoise step."""
    pooled: tuple[Tensor, ...] = ()
    """Vectors (features,) that only the modulation reads."""

    @property
    def num_bytes(self) -> int:
        return self.context.nbytes + sum(vector.nbytes for vector in self.pooled)


class StepShape(NamedTuple):
    """Pictures share a denoise step only if all of this is equal."""

    num_text: int
    """T."""
    rows: int
    """Patches down."""
    columns: int
    """Patches across."""
    form: str
    """Form of the transformer's weights: `request.BASE` or `request.FP8`."""
    reference: tuple[int, int] = (0, 0)
    """Patches down and across of a picture that is read beside the one that is drawn."""

    @property
    def num_patches(self) -> int:
        """Patches of both pictures: a pass's tokens besides the text."""
        return self.rows * self.columns + self.reference[0] * self.reference[1]

    @property
    def num_tokens(self) -> int:
        return self.num_text + self.num_patches

    def described(self, side: int) -> str:
        """The sizes in pixels, for patches of `side` pixels."""
        drawn = f"{self.columns * side}x{self.rows * side}"
        rows, columns = self.reference
        return f"{drawn} beside {columns * side}x{rows * side}" if rows else drawn


class CheckpointConfig(Protocol):
    """Sizes and defaults that a checkpoint's configs give. Immutable, a dataclass of plain values:
    its digest names the compiled code."""

    @property
    def patch_pixels(self) -> int:
        """Pixels per side of one latent patch; sides must be multiples of it."""

    @property
    def sample_size(self) -> int:
        """Side in pixels of a picture whose size is not given."""

    @property
    def max_text_tokens(self) -> int:
        """The largest T."""

    @property
    def default_text_tokens(self) -> int:
        """T of a request that gives none."""

    @property
    def default_steps(self) -> int:
        """Denoise steps of a request that gives none."""

    @property
    def default_guidance(self) -> float:
        """`guidance_scale` of a request that gives none."""

    @property
    def is_quantized(self) -> bool:
        """True if the transformer is stored in fp8: then there is no form `BASE`."""

    @property
    def kind(self) -> str:
        """`request.TEXT`, `request.FILL` or `request.KONTEXT`."""

    @property
    def has_encoder(self) -> bool:
        """True if the weights of the autoencoder's encoder are stored."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    forms: tuple[str, ...]
    """Forms of the transformer's weights to hold: `request.BASE`, `request.FP8`."""
    longest_sequence: int
    """T + I of the largest promised shape, for the choice of an attention kernel."""
    fp8_attention: bool
    """Attention of fp8 weights may run in fp8."""
    fp8_conditioning: bool = False
    """The large linears that run once per picture are held in fp8, if `BASE` is no form."""
    rank_rows: int = 0
    """Rows of the adapters' device tables; 0 without adapters."""
    encodes: bool = False
    """The encoder of pictures is held."""


class DiffusionModel(Protocol):
    """A checkpoint that was read but not loaded. Thread-safe; computes nothing on a device."""

    @property
    def config(self) -> CheckpointConfig:
        """Sizes and defaults."""

    @property
    def schedule(self) -> Schedule:
        """Noise levels of a number of steps."""

    def tokenize(self, text: str, num_tokens: int) -> Prompt:
        """`text` padded or cut to T = `num_tokens`."""

    def draw_noise(self, seed: int, rows: int, columns: int) -> Tensor:
        """The initial latents, float32 (I, C) on the CPU; they depend on nothing else."""

    def load(self, name: str, placement: Placement, options: LoadOptions) -> DiffusionPasses:
        """Weights onto the device, kernels chosen. Engine thread; `name` is for the log.

        Raises `EngineFailed` naming what does not fit.
        """


class DiffusionPasses(Protocol):
    """A loaded checkpoint's forward passes. Engine thread only, in `torch.inference_mode`.

    They only launch and read nothing back. On CUDA `encode` and the functions of `velocity`,
    `decoder` and `encoder` are captured in graphs, so they must not depend on values nor upload
    anything.
    """

    @property
    def attention(self) -> str:
        """Name of the attention kernel, for operators."""

    def encode(self, *ids: Tensor) -> tuple[Tensor, ...]:
        """`context` of an `Embedding` and then its `pooled`, for a `Prompt`'s ids on the device."""

    def modulations(
        self, timesteps: Tensor, guidance: Tensor, prompts: Sequence[Embedding]
    ) -> Tensor:
        """The modulation of every step, (steps, rows, features), with a row per prompt.

        timesteps (steps,) and guidance (1,) are those of a `DenoisePlan`.
        """

    def positions(
        self, num_text: int, rows: int, columns: int, reference: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """The tokens' positions as the transformer reads them, e.g. a rotary table. On the host.

        `reference` as in `StepShape`: its patches come last."""

    def velocity(self, form: str, *, is_promised: bool) -> Callable[..., Tensor]:
        """A function of latents (n, I, C), context (n, T, dim), modulation (n, features) and
        positions: velocity (n, I, C). A row's bits must not depend on n on the CPU. An edit's
        latents are those of `EditState.widened`, and the velocity's first I patches are read.

        `is_promised`: the shape is warmed before traffic, and may be compiled.
        """

    def unpacked(self, latents: Tensor, rows: int, columns: int) -> Tensor:
        """The decoder's input, (1, channels, height, width), for latents (I, C) after the last
        step."""

    def decoder(self, *, is_promised: bool) -> Callable[[Tensor], Tensor]:
        """A function of `unpacked` latents: uint8 (height * width * 3 + 1,), the picture's RGB
        levels and then 1 if all its values were finite before they were rounded, else 0."""


@runtime_checkable
class AdaptableModel(Protocol):
    """Optional part of a `DiffusionModel` whose linears take adapters. It loads `AdaptedPasses`."""

    def adapter_places(self) -> Mapping[str, AdapterPlace]:
        """The linears that may change, by the paths of `AdapterWeights.changes`."""


@runtime_checkable
class AdaptedPasses(DiffusionPasses, Protocol):
    """Passes that were loaded with `LoadOptions.rank_rows`."""

    @property
    def tables(self) -> Mapping[str, LowRankTable]:
        """Device tables of the linears that run in every step, by the model's name of a linear."""

    def adapted(self, changes: Sequence[AppliedChange]) -> AbstractContextManager[None]:
        """A block in which `encode` and `modulations` run with these changes of their linears. They
        may not be captured inside."""

    def adapted_velocity(self, form: str) -> Callable[..., Tensor]:
        """As `velocity`, with index and scales of `RankRows` as further arguments. Never
        compiled."""


@runtime_checkable
class PiecewisePasses(DiffusionPasses, Protocol):
    """Passes whose step can be cut, so that other engines on the card get in between."""

    def velocity_pieces(
        self, form: str, count: int, *, is_promised: bool, is_adapted: bool
    ) -> Sequence[Callable[..., Any]]:
        """The function of `velocity`, or of `adapted_velocity`, in at most `count` pieces of about
        the same time: with the same bits. The first takes its inputs, each other one what the piece
        before returned and then the same inputs."""


@runtime_checkable
class EditingModel(Protocol):
    """Optional part of a `DiffusionModel` whose `CheckpointConfig.has_encoder` may be true. With
    `LoadOptions.encodes` it loads `EncodingPasses`."""

    def read_source(self, source: SourcePicture, seed: int, strength: float) -> SourceInputs:
        """The inputs of an edit with the picture `source`, on the host."""


@runtime_checkable
class EncodingPasses(DiffusionPasses, Protocol):
    """Passes that were loaded with `LoadOptions.encodes`."""

    def encoder(self, *, is_promised: bool) -> Callable[[Tensor, Tensor], Tensor]:
        """A function of `pixels` and `keep` of an `Encoding` that returns the moments of the
        posterior."""

    def encoded_latents(self, moments: Tensor, sample: Tensor) -> Tensor:
        """Latents (patches, C), scaled and shifted, for moments of `encoder` and an `Encoding`'s
        sample."""
