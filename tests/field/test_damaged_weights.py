"""Weights that are damaged, or of another type than they should be, in any part of either model:
the start is refused with the tensor's name, and the model is never ready."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from predictors.__main__ import build
from predictors.base import BasePredictor
from predictors.compute.checkpoint.values import LARGEST, check_magnitudes
from predictors.errors import EngineFailed, ServingError
from predictors.serving.lifecycle import State
from predictors.settings import ComputeSettings, FluxSettings, QwenVLSettings, Settings
from tests.variants import FLUX, QWEN, Tensors, recast, short_message, variant, weights

SMALL = Settings(
    compute=ComputeSettings(device="cpu"),
    flux=FluxSettings(
        sizes="64x64", default_size="64x64", max_sequence_length=16, slots=1, tiers="lossless"
    ),
    qwen_vl=QwenVLSettings(slots=1, max_context=256, prefill_chunk=64),
)
WEIGHTS = {
    "flux transformer": (FLUX, "transformer/diffusion_pytorch_model.safetensors", (
        "transformer_blocks.0.attn.to_q.weight",
        "single_transformer_blocks.1.proj_out.weight",
        "transformer_blocks.1.norm1.linear.weight",
        "x_embedder.bias",
    )),
    "flux T5": (FLUX, "text_encoder_2/model.safetensors", (
        "shared.weight",
        "encoder.block.0.layer.1.DenseReluDense.wo.weight",
    )),
    "flux CLIP": (FLUX, "text_encoder/model.safetensors", (
        "embeddings.token_embedding.weight",
    )),
    "flux decoder": (FLUX, "vae/diffusion_pytorch_model.safetensors", (
        "decoder.mid_block.resnets.0.conv1.weight",
    )),
    "chat model": (QWEN, "model.safetensors", (
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.0.input_layernorm.weight",
    )),
    "vision tower": (QWEN, "model.safetensors", (
        "visual.blocks.0.attn.qkv.weight",
        "visual.patch_embed.proj.weight",
    )),
}  # fmt: skip
PLACES = {
    f"{part}: {name}": (source, file, name)
    for part, (source, file, names) in WEIGHTS.items()
    for name in names
}
Edit = Callable[[Tensors], object]


def filled(name: str, value: float) -> Edit:
    return lambda tensors: tensors[name].fill_(value)


def one_value(name: str, value: float) -> Edit:
    def edit(tensors: Tensors) -> None:
        tensors[name].view(-1)[7] = value

    return edit


def flipped(name: str) -> Edit:
    """The highest bit of one exponent: 0.02 becomes 7e36."""

    def edit(tensors: Tensors) -> None:
        bits = torch.int16 if tensors[name].element_size() == 2 else torch.int32
        values = tensors[name].view(bits).view(-1)
        values[7] ^= 1 << (8 * bits.itemsize - 2)

    return edit


DAMAGE: dict[str, Callable[[str], Edit]] = {
    "all NaN": lambda name: filled(name, float("nan")),
    "one infinity": lambda name: one_value(name, float("inf")),
    "a flipped bit": flipped,
}
TYPES = (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool)


def refused(folder: Path) -> str:
    """The message of the start, which is no READY."""
    try:
        predictor: BasePredictor[object, object, object] = build("m", folder, SMALL, None)  # type: ignore[arg-type]
    except ServingError as failure:
        return short_message(failure, folder)
    try:
        with pytest.raises(EngineFailed) as failed:
            predictor.load()
        assert predictor.host.state is State.FAILED
        assert not predictor.ready
        return short_message(failed.value, folder)
    finally:
        predictor.stop()


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize(("source", "file", "name"), PLACES.values(), ids=PLACES)
def test_a_damaged_tensor_is_named_at_the_start(
    tmp_path: Path, source: Path, file: str, name: str, kind: str
) -> None:
    said = refused(variant(source, tmp_path / "c", weights(file, DAMAGE[kind](name))))
    assert f"tensor {name} holds" in said
    assert "the file is damaged (fetch it again)" in said


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("place", list(PLACES)[::3])
def test_a_tensor_of_integers_is_named_at_the_start(
    tmp_path: Path, place: str, dtype: torch.dtype
) -> None:
    source, file, name = PLACES[place]
    said = refused(variant(source, tmp_path / "c", weights(file, recast(name, dtype))))
    assert name in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "model.embed_tokens.weight",
            "the logits of a warm-up prompt (a turn of text) are all equal",
        ),
        ("model.norm.weight", "the logits of a warm-up prompt (a turn of text) are all equal"),
        (
            "visual.merger.ln_q.weight",
            "the vision features of a warm-up prompt (a picture) are all",
        ),
    ],
)
def test_a_chat_model_of_zeros_is_found_by_what_it_answers(
    tmp_path: Path, name: str, said: str
) -> None:
    change = weights("model.safetensors", filled(name, 0.0))
    assert said in refused(variant(QWEN, tmp_path / "c", change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_but_possible_weights_pass(dtype: torch.dtype) -> None:
    check_magnitudes(
        [(torch.full((2, 3), LARGEST / 2, dtype=dtype), "w"), (torch.zeros(0), "none")]
    )
    with pytest.raises(EngineFailed, match=r"tensor w holds 2e\+06; trained weights are finite"):
        check_magnitudes([(torch.full((2, 3), -2 * LARGEST, dtype=dtype), "w")])


def test_a_tensor_of_zeros_is_served_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    check_magnitudes([(torch.zeros(2, 3), "zeros"), (torch.zeros(3), "bias")])
    assert [r.message for r in caplog.records] == [
        "tensor zeros holds only zeros; is the file complete?"
    ]
