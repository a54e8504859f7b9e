"""Shared by the tests of chat models: pictures, requests, engines driven by hand, rewritten
checkpoints.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from predictors.chat.engine import ChatEngine
from predictors.chat.inputs import ChatPreparer
from predictors.chat.kv_cache import PagePool
from predictors.chat.model import ChatModel
from predictors.chat.request import ChatDelta, ChatRequest, Message, Picture, Sampling
from predictors.chat.runner import ChatRunner
from predictors.chat.vision.pictures import PictureRunner
from predictors.chat.work import ChatWork
from predictors.compute.device.placement import place
from predictors.models.qwen2_5_vl.model import Qwen25VLModel
from predictors.serving.job import Job
from predictors.settings import ComputeSettings, ImageLimits, QwenVLSettings

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "shapes-qwen-vl"
GREEDY = Sampling(temperature=0.0, repetition_penalty=1.05)


def png(seed: int, width: int = 64, height: int = 64) -> bytes:
    """A picture of noise blocks, so that every seed and size looks different."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (5, 7, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(blocks.numpy()).resize((width, height), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def chat(*parts: str | bytes, **given: Any) -> ChatRequest:
    """A request of one user message of texts and picture files."""
    made = tuple(Picture(p) if isinstance(p, bytes) else p for p in parts)
    request = ChatRequest((Message("user", made),), GREEDY, seed=0, max_tokens=8)
    return replace(request, **given)


@dataclass
class Room:
    """Model, inputs and engine of one checkpoint, without server and thread."""

    model: ChatModel
    inputs: ChatPreparer
    engine: ChatEngine

    @classmethod
    def open(
        cls,
        checkpoint: Path = CHECKPOINT,
        compile: str = "off",
        device: str = "cpu",
        **given: Any,
    ) -> Room:
        """As `make`, loaded and warm."""
        room = cls.make(checkpoint, compile, device, **given)
        room.engine.load()
        room.engine.warm(lambda *_: None)
        return room

    @classmethod
    def make(
        cls,
        checkpoint: Path = CHECKPOINT,
        compile: str = "off",
        device: str = "cpu",
        dtype: str = "auto",
        on_device: bool = False,
        make_model: Callable[[Path], ChatModel] = Qwen25VLModel,
        name: str = "test",
        **settings: Any,
    ) -> Room:
        """Not loaded, float32 on the CPU; `on_device`: pictures are resized there."""
        chosen = QwenVLSettings(**{"slots": 8, "max_context": 512, **settings})
        placement = place(ComputeSettings(device=device, compile=compile, dtype=dtype))
        model = make_model(checkpoint)
        engine = ChatEngine(name, model, chosen, placement)
        inputs = ChatPreparer(
            name, model, chosen, ImageLimits(), lambda: engine.max_context, on_device=on_device
        )
        return cls(model, inputs, engine)

    @property
    def runner(self) -> ChatRunner:
        """The engine's."""
        return self.engine._launcher.runner

    @property
    def pictures(self) -> PictureRunner:
        """The engine's."""
        return self.engine._launcher.pictures

    @property
    def pool(self) -> PagePool:
        """The engine's."""
        return self.engine._pages.pool

    @classmethod
    def open_ahead(cls, checkpoint: Path = CHECKPOINT, **settings: Any) -> Room:
        """As on a GPU: a step is launched before the last one is read, prompts share passes."""
        room = cls.open(checkpoint, **settings)
        room.runner.is_ahead = room.runner.packs = True
        return room

    def job(self, request: ChatRequest) -> Job[ChatWork, ChatDelta]:
        """A job that is not admitted yet."""
        return Job("test", self.inputs.prepare(request))

    def start(self, request: ChatRequest) -> Job[ChatWork, ChatDelta]:
        """A job with a slot."""
        job = self.job(request)
        self.engine.validate(job.work)
        assert self.engine.admit(job)
        return job

    def finish(self) -> None:
        """Step until no job is left."""
        while self.engine.busy:
            self.engine.step(self.engine.active)

    def answer(self, request: ChatRequest) -> list[int]:
        """The tokens of a job that runs alone."""
        job = self.start(request)
        self.finish()
        return tokens_of(job)

    def answers(self, requests: Sequence[ChatRequest]) -> list[list[int]]:
        """The tokens of jobs that run together, as many as fit at a time."""
        jobs = [self.job(request) for request in requests]
        waiting = list(jobs)
        while waiting or self.engine.busy:
            while waiting and self.engine.admit(waiting[0]):
                waiting.pop(0)
            self.engine.step(self.engine.active)
        return [tokens_of(job) for job in jobs]


def deltas_of(job: Job[ChatWork, ChatDelta]) -> list[ChatDelta]:
    """The deltas emitted so far."""
    return list(job._chunks)


def tokens_of(job: Job[ChatWork, ChatDelta]) -> list[int]:
    """The answer so far."""
    return [token for delta in deltas_of(job) for token in delta.tokens]


def rewrite_as_hub(source: Path, target: Path) -> Path:
    """The checkpoint as the hub ships such models: flat config, three shards, untied head."""
    config = json.loads((source / "config.json").read_text())
    text, rope = config["text_config"], config["text_config"]["rope_parameters"]
    dropped = {"layer_types", "rope_parameters", "model_type", "pad_token_id", "sliding_window"}
    flat = {key: value for key, value in text.items() if key not in dropped}
    flat |= {key: value for key, value in config.items() if key not in {"text_config", "dtype"}}
    flat["vision_config"] = {**config["vision_config"], "in_chans": 3, "spatial_patch_size": 14}
    flat["vision_config"].pop("rope_parameters", None)
    flat |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "sliding_window": 32768,
        "transformers_version": "4.49.0",
    }
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(flat))
    for name in ("generation_config.json", "preprocessor_config.json", "vocab.json", "merges.txt"):
        shutil.copy(source / name, target)
    shutil.copy(source / "tokenizer.json", target)
    _move_template(source, target)
    _shard(load_file(source / "model.safetensors"), target)
    return target


def _move_template(source: Path, target: Path) -> None:
    """The template into chat_template.json alone, marked so that it is seen to be the one used."""
    config = json.loads((source / "tokenizer_config.json").read_text())
    template = config.pop("chat_template", None)
    if template is None:
        template = json.loads((source / "chat_template.json").read_text())["chat_template"]
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    template = template.replace("You are a helpful assistant.", "You describe pictures.")
    (target / "chat_template.json").write_text(json.dumps({"chat_template": template}))


def _shard(weights: dict[str, torch.Tensor], target: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    embedding = weights["model.embed_tokens.weight"]
    noise = torch.randn(embedding.shape, generator=generator) * embedding.float().std()
    weights["lm_head.weight"] = (embedding.float() + noise).to(embedding.dtype)
    names, index = sorted(weights), {}
    for i in range(3):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        part = {name: weights[name] for name in names[i::3]}
        save_file(part, target / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    written = {"metadata": {"total_size": 0}, "weight_map": index}
    (target / "model.safetensors.index.json").write_text(json.dumps(written))


def rewrite_as_wild(source: Path, target: Path) -> Path:
    """The same sizes with large random weights: its answers depend on every pixel and position."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    generator = torch.Generator().manual_seed(5)
    weights = load_file(source / "model.safetensors")
    for name, value in weights.items():
        noise = torch.randn(value.shape, generator=generator)
        if value.dim() == 1:
            made = 0.2 * noise + (0.0 if name.endswith("bias") else 1.0)
        elif "embed_tokens" in name:
            made = noise
        else:
            made = noise * 1.5 / value[0].numel() ** 0.5
        weights[name] = made.to(value.dtype)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target
