"""`FluxModel` before any weight is loaded: noise and token ids."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxPipeline

from predictors.models.flux.model import FluxModel
from tests.diffusion.driver import CHECKPOINT


@pytest.fixture(scope="module")
def model() -> FluxModel:
    return FluxModel(CHECKPOINT)


def test_noise_is_what_the_pipeline_draws_from_the_same_seed(
    model: FluxModel, pipeline: FluxPipeline
) -> None:
    generator = torch.Generator("cpu").manual_seed(77)
    theirs, _ = pipeline.prepare_latents(
        1, 16, 96, 64, torch.float32, torch.device("cpu"), generator
    )
    assert torch.equal(model.draw_noise(77, 6, 4), theirs[0])


@pytest.mark.parametrize("text", ["a red circle", "", "blue square left of " * 40])
def test_a_prompt_has_the_ids_of_both_tokenizers_and_counts_its_tokens(
    model: FluxModel, pipeline: FluxPipeline, text: str
) -> None:
    prompt = model.tokenize(text, 16)
    (clip_ids, t5_ids), clip, t5 = prompt.ids, pipeline.tokenizer, pipeline.tokenizer_2
    theirs = clip(text, padding="max_length", max_length=77, truncation=True).input_ids
    assert clip_ids.tolist() == [theirs]
    theirs = t5(text, padding="max_length", max_length=16, truncation=True).input_ids
    assert t5_ids.tolist() == [theirs]
    assert prompt.num_read == min(len(t5(text).input_ids), 16)
    assert prompt.num_read + prompt.num_unread == len(t5(text).input_ids)
    assert (prompt.key, prompt.num_tokens) == ((text, 16), 16)
