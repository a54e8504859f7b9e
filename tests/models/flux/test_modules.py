"""Each module against the diffusers module it stands for."""

from __future__ import annotations

import torch
from diffusers import FluxPipeline
from diffusers.models.transformers.transformer_flux import FluxPosEmbed

from predictors.models.flux.modules.conditioning import _waves
from predictors.models.flux.modules.rotary import rotary_table, rotate
from tests.diffusion.driver import EngineDriver


def test_the_rotary_table_is_diffusers_with_each_angle_once() -> None:
    axes = (8, 12, 12)
    ids = FluxPipeline._prepare_latent_image_ids(1, 5, 3, torch.device("cpu"), torch.float32)
    cos, sin = FluxPosEmbed(theta=10000, axes_dim=list(axes))(torch.cat((torch.zeros(7, 3), ids)))
    table = rotary_table(7, 5, 3, axes)
    assert table.shape == (2, 7 + 15, 16)
    assert torch.equal(table.repeat_interleave(2, dim=-1), torch.stack((cos, sin)))


def test_rotation_keeps_lengths_and_depends_on_the_difference_of_positions() -> None:
    table = rotary_table(0, 1, 9, (8, 12, 12))
    query, key = torch.randn(32), torch.randn(32)
    queries = rotate(query.expand(1, 9, 1, 32), table)[0, :, 0]
    keys = rotate(key.expand(1, 9, 1, 32), table)[0, :, 0]
    assert torch.allclose(queries.norm(dim=-1), query.norm().expand(9), atol=1e-5)
    products = queries @ keys.T
    for offset in range(1, 8):
        along = products.diagonal(offset)
        assert torch.allclose(along, along[0].expand_as(along), atol=1e-4)


def test_time_guidance_and_prompt_embed_as_diffusers_does(
    driver: EngineDriver, pipeline: FluxPipeline
) -> None:
    parts = driver.engine.runner.passes.parts
    conditioning, shape = parts.conditioning, parts.transformers["base"].shape
    theirs = pipeline.transformer.time_text_embed
    timesteps, guidance = torch.tensor([1000.0, 731.25, 3.5]), torch.tensor([3500.0])
    pooled = torch.randn(2, shape.pooled_dim)
    with torch.inference_mode():
        assert torch.allclose(_waves(timesteps), theirs.time_proj(timesteps), atol=1e-6)
        modulations = conditioning.modulations(timesteps, guidance, pooled)
        assert modulations.shape == (3, 2, shape.modulation_dim)
        for step in range(3):
            for row in range(2):
                one = slice(row, row + 1)
                vector = theirs(timesteps[step : step + 1], guidance, pooled[one])
                dim = shape.dim
                block = pipeline.transformer.transformer_blocks[1]
                first = block.norm1.linear(torch.nn.functional.silu(vector))[0]
                found = modulations[step, row, 12 * dim : 18 * dim]
                assert torch.allclose(found, first, atol=1e-5)
                last = pipeline.transformer.norm_out.linear(torch.nn.functional.silu(vector))[0]
                assert torch.allclose(modulations[step, row, -2 * dim :], last, atol=1e-5)
