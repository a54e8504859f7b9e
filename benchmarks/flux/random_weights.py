"""Random FLUX.1 checkpoints, made on the device: FLUX.1-dev and FLUX.1-schnell at full size, and a
toy of the embedded checkpoint's size.

Speed does not depend on the values, so anyone with a GPU can rerun the benchmarks without a
download. Weights keep the size of what they multiply (so nothing overflows in 57 blocks), norms are
about 1, biases are small and not zero: a forgotten one would show in the accuracy section.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from benchmarks.common import paths

EMBEDDED = paths.SHAPES_FLUX
SEED = 2026
SMALLEST_SPREAD = 0.02

Configs = Mapping[str, Mapping[str, Any]]

FULL: Configs = {
    "transformer": {
        "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56],
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "pooled_projection_dim": 768,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "vocab_size": 49408,
    },
    "text_encoder_2": {
        "d_ff": 10240,
        "d_kv": 64,
        "d_model": 4096,
        "num_heads": 64,
        "num_layers": 24,
        "vocab_size": 32128,
    },
    "tokenizer_2": {"model_max_length": 512},
}
"""Values of FLUX.1 as released that differ from the embedded checkpoint; the rest is the same."""

TOY: Configs = {}

SCHNELL: Configs = {
    "transformer": {"guidance_embeds": False},
    "scheduler": {"shift": 1.0, "use_dynamic_shifting": False},
}
"""Values of FLUX.1-schnell that differ from FLUX.1-dev."""

KONTEXT: Configs = {".": {"_class_name": "FluxKontextPipeline"}}
"""FLUX.1-Kontext has the tensors of FLUX.1-dev."""

FILES = {
    ".": "model_index.json",
    "scheduler": "scheduler_config.json",
    "tokenizer_2": "tokenizer_config.json",
}


class Stored:
    """One folder of a checkpoint in memory, as the loader's `Source`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> Sequence[int]:
        return self._tensors[name].shape

    def copy_into(self, pairs: Iterable[tuple[Tensor, str]]) -> None:
        for target, name in pairs:
            source = self._tensors[name]
            assert target.shape == source.shape, name
            target.copy_(source)


@dataclass(frozen=True, slots=True)
class Models:
    """One checkpoint's modules as diffusers and transformers have them, on the device."""

    folder: Path
    """Configs and tokenizers, no weights."""
    transformer: Any
    vae: Any
    clip: Any
    t5: Any
    scheduler: Any

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Every stored tensor by folder and name, as a checkpoint on disk would have it."""
        modules = {
            "transformer": self.transformer,
            "vae": self.vae,
            "text_encoder": self.clip,
            "text_encoder_2": self.t5,
        }
        return {part: dict(module.state_dict()) for part, module in modules.items()}

    def opened(self, part: str) -> AbstractContextManager[Stored]:
        return nullcontext(Stored(self.states()[part]))


def write_folder(folder: Path, *changes: Configs) -> Path:
    """Configs and tokenizers of a checkpoint: the embedded one's with `changes`, one by one."""
    shutil.copytree(EMBEDDED, folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    for change in changes:
        for part, fields in change.items():
            path = folder / part / FILES.get(part, "config.json")
            path.write_text(json.dumps(json.loads(path.read_text()) | dict(fields), indent=1))
    return folder


def make(folder: Path, device: torch.device, dtype: torch.dtype) -> Models:
    """Random modules for the configs in `folder`; the same on every run of one device type."""
    generator = torch.Generator(device).manual_seed(SEED)
    modules = shells(folder)
    for module in modules.values():
        _fill(module, dtype, generator)
    return Models(folder, **modules, scheduler=_scheduler(folder))


def shells(folder: Path) -> dict[str, Any]:
    """The modules of `Models` for the configs in `folder`, on the meta device."""
    with torch.device("meta"):
        return {
            "transformer": _from_config(FluxTransformer2DModel, folder / "transformer"),
            "vae": _from_config(AutoencoderKL, folder / "vae"),
            "clip": CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")),
            "t5": T5EncoderModel(T5Config.from_pretrained(folder / "text_encoder_2")),
        }


def other_of(dev: Models, folder: Path) -> Models:
    """FLUX.1-schnell or -Kontext for the configs in `folder`, sharing every tensor with `dev`:
    schnell's transformer is the same but for the guidance embedding, Kontext's is the same."""
    return Models(
        folder,
        twin(dev.transformer, folder / "transformer"),
        dev.vae,
        dev.clip,
        dev.t5,
        _scheduler(folder),
    )


def twin(module: Any, folder: Path | None = None) -> Any:
    """Another diffusers module on the same tensors, for the config in `folder` or the same one:
    compiling it leaves `module` as it is."""
    kind = type(module)
    config = module.config if folder is None else kind.load_config(folder, local_files_only=True)
    with torch.device("meta"):
        other = kind.from_config(config)
    state = module.state_dict()
    other.load_state_dict({name: state[name] for name in other.state_dict()}, assign=True)
    return other.eval().requires_grad_(False)


def _from_config(kind: Any, folder: Path) -> Any:
    return kind.from_config(kind.load_config(folder, local_files_only=True))


def _scheduler(folder: Path) -> Any:
    return _from_config(FlowMatchEulerDiscreteScheduler, folder / "scheduler")


def _fill(module: nn.Module, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Random weights in place of meta tensors; tied ones stay tied."""
    drawn: dict[int, Tensor] = {}
    state = {}
    for name, meta in module.named_parameters(remove_duplicate=False):
        if id(meta) not in drawn:
            drawn[id(meta)] = _draw(name, meta.shape, dtype, generator)
        state[name] = drawn[id(meta)]
    module.load_state_dict(state, strict=True, assign=True)
    for name, buffer in list(module.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        assert leaf == "position_ids", f"no way is known to derive the buffer {name}"
        positions = torch.arange(buffer.shape[-1], device=generator.device)[None]
        module.get_submodule(owner).register_buffer(leaf, positions, persistent=False)
    module.eval().requires_grad_(False)


def _draw(name: str, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    place = torch.empty(shape, dtype=dtype, device=generator.device)
    if len(shape) == 1:
        return place.normal_(1.0 if name.endswith("weight") else 0.0, 0.02, generator=generator)
    inputs = shape[1:].numel()
    return place.normal_(0.0, max(SMALLEST_SPREAD, inputs**-0.5), generator=generator)
