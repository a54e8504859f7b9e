"""The decoder against diffusers' own, and its fused operations against its plain ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

import tests.triton_interpreter  # noqa: F401
from predictors.compute.compile.compiling import compiled
from predictors.compute.device.placement import Placement
from predictors.errors import EngineFailed
from predictors.models.flux.modules import picture_kernels
from predictors.models.flux.modules.decoder import (
    OLD_ATTENTION,
    PLAIN,
    Decoder,
    decode,
    decoder_names,
    decoder_shape,
)
from predictors.models.flux.modules.decoder_fused import Fused, fold, pad_outputs
from tests.tools.syncs import no_host_syncs

CHECKPOINT = Path(__file__).parents[3] / "checkpoints" / "shapes-flux" / "vae"
FLUX_LIKE: dict[str, Any] = {
    "block_out_channels": (16, 32, 48, 48),
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
LAYOUTS = {
    "flux": FLUX_LIKE,
    "post quant conv": FLUX_LIKE | {"use_post_quant_conv": True, "latent_channels": 4},
    "no attention": FLUX_LIKE | {"mid_block_add_attention": False},
    "three blocks": FLUX_LIKE | {"block_out_channels": (16, 16, 32), "layers_per_block": 1},
}

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")


def make_vae(**config: Any) -> AutoencoderKL:
    count = len(config["block_out_channels"])
    torch.manual_seed(0)
    vae = AutoencoderKL(
        up_block_types=("UpDecoderBlock2D",) * count,
        down_block_types=("DownEncoderBlock2D",) * count,
        **config,
    )
    for name, parameter in vae.named_parameters():
        if "norm" in name:  # ones and zeros would hide a mix-up
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    return vae.eval().requires_grad_(False)


def ours(vae: AutoencoderKL, dtype: torch.dtype = torch.float32) -> Decoder:
    shape, stored = decoder_shape(vae.config), vae.state_dict()
    decoder = Decoder(shape)
    names = decoder_names(shape)
    state = {name: torch.cat([stored[n] for n in sources]) for name, sources in names.items()}
    decoder.load_state_dict(state, strict=True)
    return decoder.eval().requires_grad_(False).to(dtype)


def theirs(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    picture: Tensor = vae.decode(latents, return_dict=False)[0]
    return picture


def theirs_decoded(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """RGB levels as diffusers rounds them, (height, width, 3)."""
    picture = theirs(vae, latents)
    picture = (picture * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).float()
    return (picture * 255).round().to(torch.uint8).contiguous()


@pytest.fixture(scope="module")
def shapes_vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(CHECKPOINT).eval().requires_grad_(False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(4, 6), (9, 5)])
def test_every_layout_decodes_as_diffusers_does(layout: str, size: tuple[int, int]) -> None:
    vae = make_vae(**LAYOUTS[layout])
    decoder, latents = ours(vae), torch.randn(2, vae.config.latent_channels, *size)
    with torch.inference_mode():
        assert torch.allclose(decoder(latents[:1]), theirs(vae, latents[:1]), atol=1e-5)
        assert torch.allclose(decoder(latents), theirs(vae, latents), atol=5e-5)


def test_the_embedded_checkpoint_decodes_to_the_same_levels(
    shapes_vae: AutoencoderKL,
) -> None:
    decoder = ours(shapes_vae)
    with torch.inference_mode():
        for size in ((16, 16), (8, 20)):
            latents = torch.randn(1, 16, *size)
            levels, expected = decode(decoder, latents), theirs_decoded(shapes_vae, latents)
            assert expected.shape == (8 * size[0], 8 * size[1], 3)
            assert levels.shape == (expected.numel() + 1,)
            assert torch.equal(levels[:-1].view(expected.shape), expected)


def test_every_stored_tensor_of_the_decoder_is_read_exactly_once() -> None:
    for config in LAYOUTS.values():
        vae = make_vae(**config)
        stored = [n for n in vae.state_dict() if n.startswith(("decoder.", "post_quant_conv."))]
        names = decoder_names(decoder_shape(vae.config))
        assert sorted(n for sources in names.values() for n in sources) == sorted(stored)
        assert set(names) == set(Decoder(decoder_shape(vae.config)).state_dict())


def test_the_old_names_of_attention_are_read_too() -> None:
    shape = decoder_shape(make_vae(**FLUX_LIKE).config)
    old, new = decoder_names(shape, has_old_attention=True), decoder_names(shape)
    base = OLD_ATTENTION.removesuffix("proj_attn.weight")
    assert old["middle.1.qkv.weight"] == tuple(
        f"{base}{n}.weight" for n in ("query", "key", "value")
    )
    assert old["middle.1.out.weight"] == (OLD_ATTENTION,)
    assert new["middle.1.qkv.bias"] == tuple(f"{base}{n}.bias" for n in ("to_q", "to_k", "to_v"))
    assert {n for n in old if old[n] != new[n]} == {
        f"middle.1.{part}.{p}" for part in ("qkv", "out") for p in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [("act_fn", "relu"), ("out_channels", 4), ("up_block_types", ["AttnUpDecoderBlock2D"] * 4)],
)
def test_a_decoder_of_another_kind_is_refused_by_name(field: str, value: object) -> None:
    config = make_vae(**FLUX_LIKE).config
    altered = type(config)({**config, field: value})
    with pytest.raises(EngineFailed, match=f"the autoencoder's {field} is"):
        decoder_shape(altered)


def test_the_plain_decoder_is_one_graph_for_a_compiler(shapes_vae: AutoencoderKL) -> None:
    """Inductor itself runs in test_nothing_compiles_after_ready."""
    decoder, latents = ours(shapes_vae), torch.randn(1, 16, 6, 4)
    unit = compiled(decode, Placement(torch.device("cpu"), torch.float32, "eager"), "decode")
    with torch.inference_mode():
        assert torch.equal(unit(decoder, latents, PLAIN), decode(decoder, latents))


# -- what only a GPU runs ------------------------------------------------------------------------
def test_folding_an_upsample_is_the_same_convolution_in_float64() -> None:
    weight = torch.randn(5, 7, 3, 3, dtype=torch.float64)
    x = torch.randn(2, 7, 6, 9, dtype=torch.float64)
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, padding=1)
    folded = F.conv2d(x, fold(weight), padding=1).unflatten(1, (2, 2, 5))
    for dy in (0, 1):
        for dx in (0, 1):
            phase = folded[:, dy, dx, :, dy : dy + 6, dx : dx + 9]
            assert torch.allclose(phase, plain[:, :, dy::2, dx::2], atol=1e-12)


def test_padded_outputs_are_zeros_behind_the_real_ones() -> None:
    weight = torch.randn(3, 7, 3, 3)
    padded = pad_outputs(weight)
    assert padded.shape == (8, 7, 3, 3)
    assert torch.equal(padded[:3], weight)
    assert not padded[3:].any()
    assert pad_outputs(torch.randn(8, 7, 3, 3)).shape[0] == 8


@on_cpu
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("folds", [True, False], ids=["folded", "unfolded"])
def test_fused_operations_decode_as_plain_ones_do(layout: str, folds: bool) -> None:
    few = {"norm_num_groups": 4, "layers_per_block": 1}  # the interpreter is slow
    decoder = ours(make_vae(**LAYOUTS[layout] | few))
    latents = torch.randn(1, decoder.shape.latent_channels, 3, 2)
    with torch.inference_mode():
        expected = decoder(latents)
        found = decoder(latents, Fused(decoder, folds_upsample=folds))
    assert torch.allclose(found, expected, atol=2e-5)


@on_cpu
def test_fused_operations_decode_the_embedded_checkpoint_to_the_same_levels(
    shapes_vae: AutoencoderKL,
) -> None:
    decoder = ours(shapes_vae)
    latents = torch.randn(1, 16, 4, 4)
    with torch.inference_mode():
        expected = decode(decoder, latents).int()
        found = decode(decoder, latents, Fused(decoder)).int()
    assert (found - expected).abs().max() <= 1
    assert (found != expected).float().mean() < 1e-3


@on_cpu
def test_fused_operations_keep_nothing_of_a_picture() -> None:
    decoder = ours(make_vae(**LAYOUTS["three blocks"] | {"norm_num_groups": 4}))
    operations = Fused(decoder)
    first, other = torch.randn(1, 16, 2, 3), torch.randn(1, 16, 3, 2)
    with torch.inference_mode():
        before = decoder(first, operations)
        decoder(other, operations)
        assert torch.equal(decoder(first, operations), before)


REAL = FLUX_LIKE | {"block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32}


@pytest.mark.gpu
def test_a_gpu_decodes_in_bfloat16_as_exactly_as_diffusers_does() -> None:
    vae = make_vae(**REAL).cuda()
    latents = torch.randn(1, 16, 32, 24, device="cuda")
    decoder = ours(vae, torch.bfloat16).cuda()
    with torch.inference_mode():
        exact = theirs(vae, latents)
        found = decoder(latents.bfloat16(), Fused(decoder)).float()
        peer = theirs(vae.bfloat16(), latents.bfloat16()).float()
    assert (found - exact).norm() <= 1.1 * (peer - exact).norm()


@pytest.mark.gpu
def test_another_size_compiles_no_kernel_and_waits_for_nothing() -> None:
    decoder = ours(make_vae(**REAL), torch.bfloat16).cuda()
    operations = Fused(decoder)
    sizes = [(16, 16), (32, 40), (62, 46), (16, 2)]
    inputs = [torch.randn(1, 16, *size, device="cuda", dtype=torch.bfloat16) for size in sizes]
    with torch.inference_mode():
        decode(decoder, inputs[0], operations)
        before = num_forms()
        with no_host_syncs():
            for latents in inputs:
                decode(decoder, latents, operations)
    assert num_forms() == before > 0


def num_forms() -> int:
    """How many compiled forms the decoder's kernels have on all devices."""
    names = ("moments_kernel", "merge_kernel", "apply_kernel", "weights_kernel")
    kernels = [getattr(picture_kernels, name) for name in names]
    return sum(len(caches[0]) for k in kernels for caches in k.device_caches.values())
