"""The encoder against diffusers' own, and its fused operations against its plain ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor

import tests.triton_interpreter  # noqa: F401
from predictors.errors import EngineFailed
from predictors.models.flux.modules.encoder import (
    OLD_ATTENTION,
    Encoder,
    encode,
    encoder_names,
    encoder_shape,
    sampled,
)
from predictors.models.flux.modules.encoder_fused import FusedEncoding
from tests.models.flux.test_decoder import FLUX_LIKE, REAL, make_vae, on_cpu
from tests.tools.syncs import no_host_syncs

LAYOUTS = {
    "flux": FLUX_LIKE,
    "quant conv": FLUX_LIKE | {"use_quant_conv": True, "latent_channels": 4},
    "no attention": FLUX_LIKE | {"mid_block_add_attention": False},
    "three blocks": FLUX_LIKE | {"block_out_channels": (16, 16, 32), "layers_per_block": 1},
}


def ours(vae: AutoencoderKL, dtype: torch.dtype = torch.float32) -> Encoder:
    shape, stored = encoder_shape(vae.config), vae.state_dict()
    encoder = Encoder(shape)
    names = encoder_names(shape)
    state = {name: torch.cat([stored[n] for n in sources]) for name, sources in names.items()}
    encoder.load_state_dict(state, strict=True)
    return encoder.eval().requires_grad_(False).to(dtype)


def theirs(vae: AutoencoderKL, picture: Tensor) -> Tensor:
    moments: Tensor = vae.encode(picture).latent_dist.parameters
    return moments


def levels(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(32, 48), (72, 40)])
def test_every_layout_encodes_as_diffusers_does(layout: str, size: tuple[int, int]) -> None:
    vae = make_vae(**LAYOUTS[layout])
    encoder, pixels = ours(vae), levels(*size)
    picture = VaeImageProcessor().preprocess(Image.fromarray(pixels.numpy()))
    with torch.inference_mode():
        found = encode(encoder, pixels, torch.ones(size, dtype=torch.uint8))
        expected = theirs(vae, picture)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=5e-5)


def test_what_is_not_kept_is_mid_grey_to_the_encoder() -> None:
    vae = make_vae(**FLUX_LIKE)
    pixels, keep = levels(32, 32), torch.ones(32, 32, dtype=torch.uint8)
    keep[:, 10:] = 0
    picture = VaeImageProcessor().preprocess(Image.fromarray(pixels.numpy()))
    with torch.inference_mode():
        found, expected = encode(ours(vae), pixels, keep), theirs(vae, picture * keep)
    assert torch.allclose(found, expected, atol=5e-5)


def test_a_sample_is_diffusers_for_the_same_noise_and_the_mean_for_none() -> None:
    moments, seeded = 20 * torch.randn(1, 32, 3, 5), torch.Generator().manual_seed(1)
    noise = torch.randn((1, 16, 3, 5), generator=torch.Generator().manual_seed(1))
    posterior = DiagonalGaussianDistribution(moments)
    assert torch.equal(sampled(moments, noise), posterior.sample(seeded))
    assert torch.equal(sampled(moments, torch.zeros_like(noise)), posterior.mode())


def test_every_stored_tensor_of_the_encoder_is_read_exactly_once() -> None:
    for config in LAYOUTS.values():
        vae = make_vae(**config)
        stored = [n for n in vae.state_dict() if n.startswith(("encoder.", "quant_conv."))]
        names = encoder_names(encoder_shape(vae.config))
        assert sorted(n for sources in names.values() for n in sources) == sorted(stored)
        assert set(names) == set(Encoder(encoder_shape(vae.config)).state_dict())


def test_the_old_names_of_attention_are_read_too() -> None:
    shape = encoder_shape(make_vae(**FLUX_LIKE).config)
    old, new = encoder_names(shape, has_old_attention=True), encoder_names(shape)
    assert old["middle.1.out.weight"] == (OLD_ATTENTION,)
    assert {n for n in old if old[n] != new[n]} == {
        f"middle.1.{part}.{p}" for part in ("qkv", "out") for p in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [("act_fn", "relu"), ("in_channels", 4), ("down_block_types", ["AttnDownEncoderBlock2D"] * 4)],
)
def test_an_encoder_of_another_kind_is_refused_by_name(field: str, value: object) -> None:
    config = make_vae(**FLUX_LIKE).config
    altered = type(config)({**config, field: value})
    with pytest.raises(EngineFailed, match=f"the autoencoder's {field} is"):
        encoder_shape(altered)


# -- what only a GPU runs ------------------------------------------------------------------------
@on_cpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_operations_encode_as_plain_ones_do(layout: str) -> None:
    few: dict[str, Any] = {"norm_num_groups": 4, "layers_per_block": 1}  # the interpreter is slow
    encoder = ours(make_vae(**LAYOUTS[layout] | few))
    pixels, keep = levels(24, 16), torch.ones(24, 16, dtype=torch.uint8)
    with torch.inference_mode():
        expected = encode(encoder, pixels, keep)
        found = encode(encoder, pixels, keep, FusedEncoding(encoder))
    assert torch.allclose(found, expected, atol=2e-5)


@pytest.mark.gpu
def test_a_gpu_encodes_in_bfloat16_as_exactly_as_diffusers_does_without_a_wait() -> None:
    vae = make_vae(**REAL).cuda()
    pixels = levels(256, 192).cuda()
    keep = torch.ones(256, 192, dtype=torch.uint8, device="cuda")
    picture = (pixels.float() / 255 * 2 - 1).permute(2, 0, 1)[None]
    encoder = ours(vae, torch.bfloat16).cuda()
    operations = FusedEncoding(encoder)
    with torch.inference_mode():
        exact = theirs(vae, picture)
        encode(encoder, pixels, keep, operations)
        with no_host_syncs():
            found = encode(encoder, pixels, keep, operations).float()
        peer = theirs(vae.bfloat16(), picture.bfloat16()).float()
    assert (found - exact).norm() <= 1.1 * (peer - exact).norm()
