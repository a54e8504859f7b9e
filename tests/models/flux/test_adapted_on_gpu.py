"""The embedded checkpoint with adapters on a GPU: their graphs are captured before it is ready."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from predictors.compute.kernels.attention import sdpa
from predictors.compute.low_rank import LinearSizes, LowRank, LowRankTable, RankRows
from predictors.diffusion.request import ImageParameters, LoraScale
from predictors.models.flux.model import FluxModel
from predictors.models.flux.modules.adapted import Adapters
from predictors.models.flux.modules.operations import Streams
from tests.diffusion.driver import CHECKPOINT, FAST, EngineDriver, drive_model
from tests.models.flux.random_adapters import random_adapter
from tests.models.flux.test_adapted import EVERY, MIXES, with_loras
from tests.models.flux.test_on_gpu import CPU, GPU, IMAGE
from tests.tools.syncs import no_host_syncs

KNOBS = FAST | {"tiers": "lossless,high", "slots": 4, "lora_max_active": 2, "lora_max_rank": 32}


@pytest.fixture(scope="module")
def on_gpu() -> Iterator[EngineDriver]:
    """Warm, with three adapters."""
    driver = drive_model(FluxModel(CHECKPOINT), GPU, name="flux-gpu-lora", **KNOBS)
    driver.engine.warm(lambda *_: None)
    for weights in EVERY:
        driver.engine.add_adapter(weights)
    yield driver
    driver.engine.close()


@pytest.fixture(scope="module")
def on_cpu() -> EngineDriver:
    driver = drive_model(FluxModel(CHECKPOINT), CPU, name="flux-cpu-lora", **KNOBS)
    for weights in EVERY:
        driver.engine.add_adapter(weights)
    return driver


def images(tier: str) -> list[ImageParameters]:
    return [with_loras(replace(IMAGE, tier=tier), mix) for mix in MIXES.values()]


@pytest.mark.gpu
@pytest.mark.parametrize(("tier", "bound"), [("lossless", 0.2), ("high", 0.4)])
def test_latents_with_adapters_are_near_a_cpus(
    tier: str, bound: float, on_gpu: EngineDriver, on_cpu: EngineDriver
) -> None:
    # random adapters lift activations and with them what rounding takes: 0.11 and 0.31 on an H200
    for image in images(tier):
        found, exact = (
            on_gpu.latents(image).float().cpu(),
            on_cpu.latents(replace(image, tier="lossless")),
        )
        assert (found - exact).norm() < bound * exact.norm(), image.loras
        without = on_cpu.latents(replace(IMAGE, tier="lossless"))
        if image.loras:
            assert (found - exact).norm() < 0.5 * (without - exact).norm(), image.loras


@pytest.mark.gpu
def test_rows_of_any_mix_replay_graphs_and_lossless_keeps_their_bytes(on_gpu: EngineDriver) -> None:
    for tier in ("lossless", "high"):
        every = images(tier)
        alone = [on_gpu.draw(image) for image in every]
        together = on_gpu.drive([(i % 3, on_gpu.job(image)) for i, image in enumerate(every)])
        for a, b in zip(alone, together, strict=True):
            if tier == "lossless":
                assert np.array_equal(a, b)
            assert np.abs(a.astype(int) - b.astype(int)).mean() < 8
    described = on_gpu.engine.describe()
    assert described["captures_after_ready"] == described["recompilations_after_ready"] == 0


@pytest.mark.gpu
def test_adapters_that_come_and_go_capture_nothing_and_leave_the_others_alone(
    on_gpu: EngineDriver,
) -> None:
    kept = [with_loras(IMAGE, mix) for mix in (MIXES["none"], MIXES["b"])]
    before = [on_gpu.draw(image) for image in kept]
    on_gpu.engine.add_adapter(random_adapter("new", 16))
    new = replace(IMAGE, loras=(LoraScale("new", 1.0),))
    first = on_gpu.draw(new)
    on_gpu.engine.remove_adapter("new")
    on_gpu.engine.add_adapter(random_adapter("new", 16))
    assert np.array_equal(on_gpu.draw(new), first)
    on_gpu.engine.remove_adapter("new")
    assert all(np.array_equal(on_gpu.draw(i), b) for i, b in zip(kept, before, strict=True))
    assert on_gpu.engine.describe()["captures_after_ready"] == 0


@pytest.mark.gpu
def test_starts_and_encodes_with_adapters_do_not_wait_for_the_device(on_gpu: EngineDriver) -> None:
    job = on_gpu.job(with_loras(replace(IMAGE, prompt="not encoded before"), MIXES["a"]))
    applied = on_gpu.engine.adapters.applied(job.work.request.loras)
    runner = on_gpu.engine.runner
    with torch.inference_mode(), no_host_syncs():
        embedding = runner.encode(job.work.prompts[0], applied)
        runner.start(job.work.plan, [embedding], job.work.form, applied)


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("width", [16, 64, 256])
@pytest.mark.parametrize(("features", "features_in"), [(9216, 3072), (3072, 15360), (64, 3072)])
def test_kernels_are_within_the_rounding_of_the_sum_in_float64(
    width: int, features: int, features_in: int
) -> None:

    # these need Triton
    from predictors.models.flux.modules.adapted_fused import AdaptedFused
    from predictors.models.flux.modules.fused import Fused

    device = torch.device("cuda")
    torch.manual_seed(0)
    parts = (features // 3,) * 3 if features == 9216 else (features,)
    layers = [torch.nn.Linear(features_in, features).to(device, torch.bfloat16) for _ in range(2)]
    tables = {}
    rows = torch.arange(1, width + 1, device=device)
    for layer in layers:
        tables[layer] = LowRankTable(
            LinearSizes(features_in, parts), width + 1, device, torch.bfloat16
        )
        changes = {
            part: LowRank(torch.randn(width, features_in) / 50, torch.randn(own, width) / 50)
            for part, own in enumerate(parts)
        }
        tables[layer].write(rows, changes)
    x = torch.randn(2, 300 + 1000, features_in, device=device, dtype=torch.bfloat16)
    index = torch.stack((rows, torch.zeros_like(rows)))
    chosen = RankRows(index, torch.rand(2, width, device=device))
    ops = AdaptedFused(sdpa, Adapters(tables, chosen))
    found = ops.linear(x, Streams(*layers), 300)
    for tokens, layer in ((slice(300), layers[0]), (slice(300, None), layers[1])):
        down, up = tables[layer].down[:, rows].double(), tables[layer].up[rows].double()
        inner = torch.einsum("ti,pri->tpr", x[0, tokens].double(), down)
        inner *= chosen.scales[0].double()
        split = up.unflatten(1, (len(parts), -1))
        added = torch.einsum("tpr,rpo->tpo", inner, split).flatten(1)
        base = torch.nn.functional.linear(
            x[0, tokens].double(), layer.weight.double(), layer.bias.double()
        )
        exact = base + added
        assert (found[0, tokens].double() - exact).norm() < 0.01 * exact.norm()
    assert torch.equal(found[1], Fused(sdpa).linear(x, Streams(*layers), 300)[1])
