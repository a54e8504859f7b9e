"""The GPU benchmark run on a toy: both sides draw the same from the same random weights, and a
whole run leaves a table and a JSON file with what people look for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common.distances import distance
from benchmarks.flux import __main__ as flux
from benchmarks.flux import accuracy, goals, warm
from benchmarks.flux.cases import Case
from benchmarks.flux.ours import Ours, placement_for, settings_for
from benchmarks.flux.peer import Peer
from benchmarks.flux.random_weights import SCHNELL, TOY, Models, make, other_of, write_folder
from predictors.compute.device.placement import Placement
from predictors.models.flux.config import read_checkpoint

CPU = torch.device("cpu")
CASE = Case("dev", 64, 64, steps=4)


# -- a start with shapes left for later -----------------------------------------------------------
def test_a_minimal_start_times_every_shape_beside_a_picture(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "dev", TOY)
    found = warm.measure(folder, "minimal", "64x64,96x64", "lossless", 4, "cpu")
    assert found["shapes_at_ready"][0] == 1
    assert len(found["later"]) > 1
    assert all(each["seconds"] > 0 and each["beside_requests"] for each in found["later"])
    assert found["pictures_beside"] == len(found["later"])
    assert (found["other_pictures"], found["failed"], found["unplanned"]) == (0, [], (0, 0))


def test_a_full_start_leaves_nothing_for_later(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "dev", TOY)
    found = warm.measure(folder, "all", "64x64", "lossless", 4, "cpu")
    assert "later" not in found
    assert found["default_picture_s"] > 0


# -- both sides ------------------------------------------------------------------------------------
@pytest.fixture(scope="module", autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Other tests find nothing of the peer's compiled code."""
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A random toy."""
    folder = tmp_path_factory.mktemp("toy")
    return make(write_folder(folder / "dev", TOY), CPU, torch.float32)


def test_random_weights_are_the_same_twice_finite_and_not_trivial(models: Models) -> None:
    again = make(models.folder, CPU, torch.float32)
    for part, state in models.states().items():
        for name, tensor in state.items():
            assert torch.equal(tensor, again.states()[part][name])
            assert tensor.isfinite().all()
            assert tensor.numel() == 1 or tensor.float().std() > 0, name


def test_schnell_shares_its_tensors_with_dev(models: Models, tmp_path: Path) -> None:
    fast = other_of(models, write_folder(tmp_path / "fast", TOY, SCHNELL))
    state, source = fast.transformer.state_dict(), models.transformer.state_dict()
    assert all(tensor.data_ptr() == source[name].data_ptr() for name, tensor in state.items())
    assert {name.split(".")[1] for name in source.keys() - state.keys()} == {"guidance_embedder"}


def test_both_sides_answer_alike_on_the_same_weights_and_not_on_others(models: Models) -> None:
    facts, _ = read_checkpoint(models.folder)
    eager = Peer("eager", models, facts)
    ours = Ours(models, placement_for(CPU), settings_for("64x64", "lossless,high"))
    ours.open()
    found = accuracy.velocities([eager], ours, CASE)
    assert found["verdict"] == {"as near to float32 as the farther peer": True}
    assert 0.01 < found["step 1"]["to float32"]["here high"] < 0.1  # fp8 is another precision
    latents = accuracy.trajectories([eager], ours, CASE)
    assert all(each["finite"] for each in latents.values())
    assert latents["here lossless"]["to eager"] < 1e-5
    assert 0.001 < latents["here high"]["to here lossless"] < 0.3
    with torch.no_grad():
        bias = models.transformer.proj_out.bias
        bias += 0.01
        try:
            shifted = accuracy.velocities([eager], ours, CASE)
        finally:
            bias -= 0.01
    assert not any(shifted["verdict"].values())
    ours.close()


def test_a_forward_in_float32_is_that_of_a_float32_module_and_leaves_weights_alone(
    models: Models,
) -> None:
    facts, _ = read_checkpoint(models.folder)
    narrow = make(models.folder, CPU, torch.bfloat16)
    peer = Peer("eager", narrow, facts)
    place = Placement(CPU, torch.bfloat16, "off")
    work = Ours(narrow, place, settings_for("64x64", "lossless")).prepare(CASE, "lossless")
    before = accuracy.peer_velocity(peer, CASE, work, 1)
    with accuracy.in_float32(narrow.transformer):
        exact = accuracy.peer_velocity(peer, CASE, work, 1, torch.float32)
    assert 1e-3 < distance(before, exact) < 0.05  # bfloat16's own error
    assert torch.equal(accuracy.peer_velocity(peer, CASE, work, 1), before)
    narrow.transformer.float()
    rounded = peer.noise(CASE).bfloat16()
    peer.noise = lambda case: rounded  # type: ignore[method-assign]
    plain = accuracy.peer_velocity(peer, CASE, work, 1, torch.float32)
    assert distance(exact, plain) < 1e-5


# -- the whole -------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole toy run but for the starts, as JSON."""
    out = tmp_path_factory.mktemp("bench") / "flux.json"
    asked = ["--toy", "--steps", "9,2", "--tiers", "lossless,turbo"]  # fp8 is slow on a CPU
    sections = "accuracy,dev,widths,steady,schnell,headline,disk"
    code = flux.main([*asked, "--only", sections, "--out", str(out)])
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["failed"] == {}
    assert code == 0
    return found


def test_a_run_has_every_case_by_everybody_with_what_follows(results: dict[str, Any]) -> None:
    drawn = {
        (r["case"]["model"], r["case"]["width"], r["case"]["steps"], r["case"]["batch"])
        for r in results["rows"]
    }
    assert drawn >= {
        ("dev", 64, 9, 1),
        ("dev", 64, 2, 1),
        ("dev", 96, 9, 1),
        ("dev", 96, 2, 1),
        ("schnell", 64, 4, 1),
    }
    first = {
        r["engine"]: r
        for r in results["rows"]
        if r["case"] == {**r["case"], "model": "dev", "width": 64, "steps": 9, "batch": 1}
    }
    assert set(first) == {
        "diffusers eager", "diffusers compiled", "diffusers compiled, decoder too",
        "here lossless", "here turbo",
    }  # fmt: skip
    assert first["here turbo"]["passes"] < first["here lossless"]["passes"] == 9
    for r in results["rows"]:
        assert r["seconds"]["least"] <= r["seconds"]["median"] <= r["seconds"]["largest"]
        assert r["share_of_floor"] > 0
        assert r["tflops"] > 0
        assert r["ratio_to_peer"] > 0
    fastest = min(r["seconds"]["median"] for name, r in first.items() if name.startswith("diff"))
    ours = first["here lossless"]
    assert ours["ratio_to_peer"] == pytest.approx(fastest / ours["seconds"]["median"])


def test_a_run_tells_stages_accuracy_and_that_nothing_happens_late(results: dict[str, Any]) -> None:
    stages = {stage["engine"]: set(stage["ms"]) for stage in results["stages"]}
    assert stages["here lossless"] >= {
        "text encoders",
        "step",
        "prepare",
        "png, here",
        goals.VAE_STAGE,
    }
    assert stages["diffusers eager"] >= {
        "text encoders",
        "step",
        "vae",
        "transfer",
        "png, pillow default",
    }
    assert all(results["accuracy"]["velocity"]["verdict"].values())
    latents = results["accuracy"]["latents"]
    assert all(each["finite"] for each in latents.values())
    assert latents["here lossless"]["to diffusers eager"] < 1e-5
    assert 1e-6 < latents["here turbo"]["to here lossless"] < 0.5
    assert results["steady"]["since ready"] == {"recompilations": 0, "captures": 0}
    assert results["steady"]["new prompt"]["host_syncs"] == 0
    assert {
        "machine",
        "options",
        "ceilings",
        "ready",
        "schnell ready",
        "drift",
        "goals",
    } <= results.keys()
    assert results["disk"]["here_s"] > 0
    assert "derived_50_steps_s" in results["headline"][0]["by"]["diffusers compiled"]
