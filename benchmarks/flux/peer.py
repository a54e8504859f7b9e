"""The peer: diffusers' `FluxPipeline`, called as its documentation recommends for speed, on the
same random weights and noise.

The pipeline gets embeddings and latents that lie on the device already, so its noise costs nothing.
It returns Pillow pictures, which are written as PNG at the default level and at level 1; the faster
one counts. Compiled units are static for every size (`dynamic=False`): the documented call switches
to dynamic shapes, which are slower, at the second size.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL.Image import Image, fromarray
from torch import Tensor
from transformers import CLIPTokenizer, T5Tokenizer

from benchmarks.common.clock import Clock, Marks
from benchmarks.common.energy import first_card, joules_of
from benchmarks.common.stats import Spread
from benchmarks.flux.cases import (
    GUIDANCE,
    PROMPT,
    SEED,
    Case,
    Drawn,
    Row,
    Stages,
    source_pixels,
    summed_up,
)
from benchmarks.flux.random_weights import Models, twin
from predictors.diffusion.sampling import draw_noise
from predictors.models.flux.config import FluxConfig

PNG_LEVELS: dict[str, dict[str, int]] = {
    "pillow default": {},
    "pillow level 1": {"compress_level": 1},
}
WARM_STEPS = 2
STAGE_REPEATS = 5
MAX_SHAPES = 64  # dynamo's default of 8 is fewer than sizes x kinds of blocks


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A prompt as the transformer takes it: prompt (1, T, dim), pooled (1, pooled_dim)."""

    prompt: Tensor
    pooled: Tensor


class Peer:
    def __init__(
        self,
        name: str,
        models: Models,
        config: FluxConfig,
        kind: Any = FluxPipeline,
    ) -> None:
        """`kind` is one of diffusers' FLUX pipelines."""
        self.name = name
        self.models = models
        self._config = config
        self._kind = kind
        self._clock = Clock(models.transformer.device)
        self._pipeline = kind(
            scheduler=models.scheduler,
            vae=models.vae,
            text_encoder=models.clip,
            tokenizer=CLIPTokenizer.from_pretrained(models.folder / "tokenizer"),
            text_encoder_2=models.t5,
            tokenizer_2=T5Tokenizer.from_pretrained(models.folder / "tokenizer_2"),
            transformer=models.transformer,
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self.embeddings = self._encode_text()

    # -- drawing ---------------------------------------------------------------------------------
    def noise(self, case: Case) -> Tensor:
        """Packed, (batch, patches, channels), on the device: picture i has seed SEED + i."""
        config, weights = self._config, self.models.transformer
        rows, columns = case.height // config.patch_pixels, case.width // config.patch_pixels
        drawn = [
            draw_noise(SEED + i, config.latent_channels, rows, columns) for i in range(case.batch)
        ]
        return torch.stack(drawn).to(weights.device, weights.dtype)

    def timestep(self, case: Case, index: int) -> Tensor:
        """Of one step, float32 (1,), as the scheduler gives it to the pipeline."""
        patches = case.height * case.width // self._config.patch_pixels**2
        sigmas = self._config.schedule.sigmas(case.steps, patches)
        return 1000 * torch.from_numpy(sigmas[index : index + 1])

    def run(self, case: Case, noise: Tensor, **options: Any) -> Any:
        given = self.embeddings
        return self._pipeline(
            prompt_embeds=given.prompt.expand(case.batch, -1, -1),
            pooled_prompt_embeds=given.pooled.expand(case.batch, -1),
            **_start_of(case, noise),
            height=case.height,
            width=case.width,
            num_inference_steps=case.steps,
            guidance_scale=GUIDANCE,
            return_dict=False,
            **options,
        )[0]

    def latents(self, case: Case) -> Tensor:
        """After the last step, (batch, patches, channels)."""
        latents: Tensor = self.run(case, self.noise(case), output_type="latent")
        return latents

    def draw(self, case: Case) -> Drawn:
        noise = self.noise(case)
        marks = Marks(self._clock)

        def on_step(*arguments: object) -> dict[str, Any]:
            marks.set()
            return {}

        seconds, pictures = self._clock.seconds(
            lambda: self.run(case, noise, output_type="pil", callback_on_step_end=on_step)
        )
        encode_s = {name: _encode_s(pictures, options) for name, options in PNG_LEVELS.items()}
        pixels = [np.asarray(picture) for picture in pictures]
        return Drawn(seconds + min(encode_s.values()), marks.gaps_ms(), encode_s, pixels)

    # -- measuring -------------------------------------------------------------------------------
    def warm(self, case: Case) -> float:
        """Seconds of a first run of few steps: compilation, where there is any."""
        return self._clock.seconds(lambda: self.draw(few_steps(case)))[0]

    def measure(self, case: Case, runs: int) -> tuple[Row, Drawn]:
        """Timed runs of a case that was warmed; the row, and the last run."""
        before = self._clock.reset_peak()
        card = first_card() if self._clock.is_cuda else None
        joules, drawn = joules_of(lambda: [self.draw(case) for _ in range(runs)], card)
        peak = self._clock.peak_bytes()
        own = None if peak is None else peak - before + num_bytes(self.models)
        row = summed_up(self.name, case, drawn, passes=case.passes, peak_bytes=own, joules=joules)
        return row, drawn[-1]

    def stages(self, case: Case, row: Row) -> Stages:
        vae, clock = self.models.vae, self._clock
        scale = self._config.patch_pixels // 2
        shape = (1, self._config.latent_channels, case.height // scale, case.width // scale)
        latents = torch.randn(shape, dtype=vae.dtype, device=vae.device)

        def decode() -> Tensor:
            with torch.no_grad():
                picture: Tensor = vae.decode(latents, return_dict=False)[0]
            return picture

        picture = decode()
        to_pil = self._pipeline.image_processor.postprocess
        ms: dict[str, Spread | None] = {
            "text encoders": clock.device_ms(self._encode_text, STAGE_REPEATS),
            "step": row.step_ms,
            "vae": clock.device_ms(decode, STAGE_REPEATS),
            "transfer": clock.host_ms(lambda: to_pil(picture, output_type="pil"), STAGE_REPEATS),
        }
        for name, seconds in row.notes["encode_s"].items():
            ms[f"png, {name}"] = seconds.times(1e3)
        return Stages(self.name, case, ms)

    def _encode_text(self) -> Embeddings:
        tokens = self._config.default_text_tokens
        with torch.no_grad():
            prompt, pooled, _ = self._pipeline.encode_prompt(
                PROMPT, PROMPT, max_sequence_length=tokens
            )
        return Embeddings(prompt, pooled)

    # -- variants --------------------------------------------------------------------------------
    def compiled(self, name: str, backend: str) -> Peer:
        """Another peer on the same tensors, its repeated blocks compiled."""
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, MAX_SHAPES)
        transformer = twin(self.models.transformer)
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend)
        return self._with(name, transformer=transformer)

    def with_compiled_decoder(self, name: str, backend: str) -> Peer:
        """Another peer on the same transformer, the autoencoder's decoder compiled as well."""
        vae = twin(self.models.vae)
        vae.decoder.compile(fullgraph=True, dynamic=False, backend=backend)
        return self._with(name, vae=vae)

    def _with(self, name: str, **modules: Any) -> Peer:
        models = replace(self.models, **modules)
        return Peer(name, models, self._config, self._kind)

    def use_attention(self, backend: str) -> None:
        """One of diffusers' attention backends, by its name there. Before anything is compiled."""
        self.models.transformer.set_attention_backend(backend)


def _start_of(case: Case, noise: Tensor) -> dict[str, Any]:
    """Arguments of a pipeline for what it starts from."""
    if case.strength is not None:  # given latents would be taken for the noisy picture
        generator = torch.Generator(noise.device).manual_seed(SEED)
        picture = fromarray(source_pixels(case.width, case.height))
        return {"image": picture, "strength": case.strength, "generator": generator}
    if case.is_reference:
        picture = fromarray(source_pixels(case.width, case.height))
        area = case.width * case.height
        return {"image": picture, "latents": noise, "max_area": area, "_auto_resize": False}
    return {"latents": noise}


def few_steps(case: Case) -> Case:
    whole = WARM_STEPS if case.strength is None else math.ceil(WARM_STEPS / case.strength)
    return replace(case, steps=min(case.steps, whole))


def num_bytes(models: Models) -> int:
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for state in models.states().values()
        for tensor in state.values()
    }
    return sum(tensors.values())


def _encode_s(pictures: Sequence[Image], options: dict[str, int]) -> float:
    started = time.perf_counter()
    for picture in pictures:
        picture.save(io.BytesIO(), "PNG", **options)
    return time.perf_counter() - started
