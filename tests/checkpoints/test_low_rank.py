"""Trained low-rank adapters: attached, written, read and fused they mean the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from checkpoints.training import flux_forward, low_rank, parts
from checkpoints.training.train_flux import tables_for
from checkpoints.training.train_style import LINEARS, MODULATION

DOUBLE, SINGLE = 2, 4  # blocks of the small transformer


def velocity(model: FluxTransformer2DModel) -> Tensor:
    """Of two random rows, always the same."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 64, 64), (2, 32, parts.T5_WIDTH), (2, parts.CLIP_WIDTH))
    rows = [torch.randn(shape, generator=generator) for shape in shapes]
    sigma, guidance = torch.tensor([0.9, 0.3]), torch.tensor([1.0, 3.5])
    with torch.no_grad():
        tables = tables_for(model, 32, torch.device("cpu"))
        return flux_forward.velocity(model, *rows, sigma, guidance, tables)


def test_an_adapter_changes_nothing_before_training_and_the_same_attached_or_fused(
    tmp_path: Path,
) -> None:
    model = parts.build_transformer().eval()
    before = velocity(model)
    adapters = low_rank.attach(model, LINEARS + MODULATION, rank=3, seed=1)
    assert torch.equal(velocity(model), before)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(adapters)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.up.normal_(std=0.05)
            for half in (adapter.up, adapter.down):
                half.copy_(half.bfloat16())  # as a file has it
    attached = velocity(model)
    assert not torch.allclose(attached, before, atol=1e-2)
    file = tmp_path / "a" / "lora.safetensors"
    low_rank.save(low_rank.trained(adapters), file, "transformer.", {})
    fused = parts.build_transformer().eval()
    low_rank.fuse(fused, [(low_rank.load(file, "transformer."), 0.5)] * 2)
    assert torch.allclose(velocity(fused), attached, atol=1e-4)


@pytest.mark.parametrize(("targets", "each"), [(LINEARS, (12, 5)), (LINEARS + MODULATION, (14, 6))])
def test_the_linears_of_every_block_get_an_adapter(targets: str, each: tuple[int, int]) -> None:
    adapters = low_rank.attach(parts.build_transformer(), targets, rank=1, seed=0)
    assert len(adapters) == DOUBLE * each[0] + SINGLE * each[1]
    assert all("transformer_blocks." in path for path in adapters)
