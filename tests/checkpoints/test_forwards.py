"""The forward passes for training give the numbers of diffusers and transformers."""

from __future__ import annotations

import torch

from checkpoints.training import encoders, flux_forward, parts
from checkpoints.training.train_flux import image_ids, tables_for

WORDS = 200


def test_velocity_equals_the_forward_of_diffusers() -> None:
    transformer = parts.build_transformer().eval()
    torch.manual_seed(0)
    latents, states = torch.randn(2, 64, 64), torch.randn(2, 32, parts.T5_WIDTH)
    pooled, sigma = torch.randn(2, parts.CLIP_WIDTH), torch.tensor([0.9, 0.3])
    guidance = torch.tensor([1.0, 3.5])
    with torch.no_grad():
        tables = tables_for(transformer, 32, torch.device("cpu"))
        ours = flux_forward.velocity(transformer, latents, states, pooled, sigma, guidance, tables)
        theirs = transformer(
            hidden_states=latents,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=sigma,
            guidance=guidance,
            img_ids=image_ids(),
            txt_ids=torch.zeros(32, 3),
        ).sample
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_t5_states_equal_those_of_transformers() -> None:
    t5 = parts.build_t5(WORDS).eval()
    ids = torch.randint(2, WORDS, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = encoders.t5_states(t5, ids, encoders.t5_buckets(t5, 40))
        assert torch.allclose(ours, t5(ids).last_hidden_state, atol=1e-4)


def test_pooled_clip_equals_that_of_transformers() -> None:
    clip = parts.build_clip(WORDS).eval()
    ids = torch.randint(2, WORDS - 2, (2, 30), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 12:] = WORDS - 2, WORDS - 1
    with torch.no_grad():
        ours = encoders.clip_pooled(clip, ids)
        assert torch.allclose(ours, clip(ids).pooler_output, atol=1e-4)
