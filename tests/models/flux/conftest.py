"""The embedded checkpoint, and the same rewritten without guidance embedding and sharded, each with
its engine and with diffusers' pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import T5EncoderModel

from tests.diffusion.driver import CHECKPOINT, EngineDriver, open_driver
from tests.diffusion.threads import threads

__all__ = ["threads"]

SHARD_BYTES = 3_000_000  # of a transformer that has 14.7 MB in float32


@pytest.fixture(scope="session")
def driver() -> EngineDriver:
    """The embedded checkpoint with four slots."""
    return open_driver()


@pytest.fixture(scope="session")
def schnell_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like FLUX.1-schnell on the hub: no guidance embedding, no dynamic shift, sharded weights."""
    folder = tmp_path_factory.mktemp("checkpoints") / "schnell"
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(CHECKPOINT / "vae", folder / "vae", dirs_exist_ok=True)
    shutil.copytree(CHECKPOINT / "text_encoder", folder / "text_encoder", dirs_exist_ok=True)
    source = FluxTransformer2DModel.from_pretrained(CHECKPOINT / "transformer")
    target = FluxTransformer2DModel.from_config(source.config, guidance_embeds=False)
    missing, extra = target.load_state_dict(source.state_dict(), strict=False)
    assert not missing
    assert {name.split(".")[1] for name in extra} == {"guidance_embedder"}
    target.save_pretrained(folder / "transformer", max_shard_size=SHARD_BYTES)
    t5 = T5EncoderModel.from_pretrained(CHECKPOINT / "text_encoder_2", dtype=torch.float32)
    t5.save_pretrained(folder / "text_encoder_2", max_shard_size=SHARD_BYTES // 4)
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")
    for part in ("transformer", "text_encoder_2"):
        assert len(list((folder / part).glob("*-of-*.safetensors"))) > 1, part
        assert list((folder / part).glob("*.index.json")), part
    return folder


@pytest.fixture(scope="session")
def schnell_driver(schnell_checkpoint: Path) -> EngineDriver:
    """The rewritten checkpoint."""
    return open_driver(schnell_checkpoint)


def diffusers_pipeline(checkpoint: Path) -> FluxPipeline:
    """Diffusers' own pipeline in float32."""
    pipeline = FluxPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def pipeline() -> FluxPipeline:
    """The reference for the embedded checkpoint."""
    return diffusers_pipeline(CHECKPOINT)


@pytest.fixture(scope="session")
def schnell_pipeline(schnell_checkpoint: Path) -> FluxPipeline:
    """The reference for the rewritten one."""
    return diffusers_pipeline(schnell_checkpoint)
