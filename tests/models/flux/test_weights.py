"""Checkpoints load in every layout that hubs ship, and what does not fit is named."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from predictors.compute.device.placement import Placement
from predictors.errors import EngineFailed
from predictors.models.flux.config import read_checkpoint
from predictors.models.flux.weights import Parts, load_parts
from tests.diffusion.driver import CHECKPOINT

CPU = Placement(torch.device("cpu"), torch.float32, "off")


def load(folder: Path) -> Parts:
    return load_parts(read_checkpoint(folder)[0], CPU)


def tensors(parts: Parts) -> dict[str, torch.Tensor]:
    named = {"t": parts.transformers["base"], "c": parts.conditioning}
    named |= {"clip": parts.clip, "t5": parts.t5, "vae": parts.decoder}
    return {
        f"{part}.{name}": tensor
        for part, module in named.items()
        for name, tensor in module.state_dict().items()
    }


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "copy"))


def rewrite(file: Path, change: dict[str, str | None]) -> None:
    """Rename tensors whose name starts with a key; None drops them."""
    stored = load_file(file)
    for old, new in change.items():
        for name in [name for name in stored if name.startswith(old)]:
            tensor = stored.pop(name)
            if new is not None:
                stored[new + name.removeprefix(old)] = tensor
    save_file(stored, file)


def test_every_parameter_is_on_the_device_in_the_placements_dtype_and_frozen() -> None:
    for module in vars_of(load(CHECKPOINT)):
        for tensor in [*module.parameters(), *module.buffers()]:
            assert tensor.device.type == "cpu"
            assert not tensor.requires_grad
            assert tensor.dtype in {torch.float32, torch.int64}
        assert not module.training


def vars_of(parts: Parts) -> list[torch.nn.Module]:
    return [*parts.transformers.values(), parts.conditioning, parts.clip, parts.t5, parts.decoder]


def test_the_encoder_of_the_autoencoder_is_not_kept() -> None:
    assert not any(name.startswith("encoder.") for name in load(CHECKPOINT).decoder.state_dict())


def test_text_encoder_names_with_the_hubs_prefix_load_alike(copy: Path) -> None:
    change = {name: f"text_model.{name}" for name in ("embeddings.", "encoder.", "final_layer")}
    rewrite(copy / "text_encoder" / "model.safetensors", change)
    ours, theirs = load(copy).clip.state_dict(), load(CHECKPOINT).clip.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_t5_input_embedding_is_found_under_either_name_and_tied(copy: Path) -> None:
    file = copy / "text_encoder_2" / "model.safetensors"
    rewrite(file, {"shared.weight": "encoder.embed_tokens.weight"})
    t5 = load(copy).t5
    assert t5.shared.weight.data_ptr() == t5.encoder.embed_tokens.weight.data_ptr()
    assert torch.equal(t5.shared.weight, load(CHECKPOINT).t5.shared.weight)


@pytest.mark.parametrize(
    ("part", "file", "name"),
    [
        ("transformer", "diffusion_pytorch_model", "single_transformer_blocks.3.attn.to_k.bias"),
        ("transformer", "diffusion_pytorch_model", "time_text_embed.guidance_embedder"),
        ("text_encoder_2", "model", "encoder.final_layer_norm.weight"),
        ("vae", "diffusion_pytorch_model", "decoder.conv_out.weight"),
    ],
)
def test_a_missing_tensor_is_named(copy: Path, part: str, file: str, name: str) -> None:
    rewrite(copy / part / f"{file}.safetensors", {name: None})
    with pytest.raises(EngineFailed, match=f"{part} has no tensor {name}"):
        load(copy)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(copy: Path) -> None:
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    stored = load_file(file)
    stored["x_embedder.weight"] = stored["x_embedder.weight"][:, :32].clone()
    save_file(stored, file)
    with pytest.raises(EngineFailed, match=r"x_embedder.weight has shape \[160, 32\].*\[160, 64\]"):
        load(copy)


def test_a_component_without_weights_is_named_without_its_path(copy: Path) -> None:
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(EngineFailed, match="vae has no safetensors weights") as failure:
        load(copy)
    assert str(copy) not in str(failure.value)


def test_shards_hold_the_same_weights(schnell_checkpoint: Path) -> None:
    whole, sharded = tensors(load(CHECKPOINT)), tensors(load(schnell_checkpoint))
    assert set(whole) - set(sharded) == {name for name in whole if name.startswith("c.guidance")}
    assert all(torch.equal(whole[name], tensor) for name, tensor in sharded.items())


def test_four_threads_may_load_at_once_and_leave_torchs_defaults_alone() -> None:
    with ThreadPoolExecutor(4) as pool:
        loaded = [tensors(parts) for parts in pool.map(load, [CHECKPOINT] * 4)]
    assert torch.get_default_dtype() == torch.float32
    assert torch.empty(1).device.type == "cpu"
    for other in loaded[1:]:
        assert all(torch.equal(tensor, loaded[0][name]) for name, tensor in other.items())


def test_the_config_is_read_through_the_library_classes(
    schnell_checkpoint: Path, copy: Path
) -> None:
    config, _ = read_checkpoint(CHECKPOINT)
    assert (config.patch_pixels, config.latent_channels, config.sample_size) == (16, 16, 128)
    assert (config.default_steps, config.shape.has_guidance) == (28, True)
    assert config.default_text_tokens == min(config.max_text_tokens, 512)
    schnell, _ = read_checkpoint(schnell_checkpoint)
    assert (schnell.default_steps, schnell.shape.has_guidance) == (4, False)
    assert schnell.default_text_tokens == min(schnell.max_text_tokens, 256)
    # absent fields take the class's defaults, as when a hub config predates them
    (copy / "scheduler" / "scheduler_config.json").write_text('{"shift": 2.0}')
    assert read_checkpoint(copy)[0].schedule.num_train_timesteps == 1000
