"""The GPU benchmark's own code on a toy: its arithmetic is the page's, both sides draw the same
pictures, the table and the JSON have what people look for, and nothing needs KServe."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    flux,
    flux_accuracy,
    flux_floors,
    flux_goals,
    flux_profile,
    flux_report,
    flux_start,
)
from benchmarks.flux_cases import Case, Drawn, Row, summed_up
from benchmarks.flux_clock import Clock, Marks, Spread
from benchmarks.flux_floors import Ceilings, Operations
from benchmarks.flux_ours import Ours, placement_for, settings_for
from benchmarks.flux_peer import Peer
from benchmarks.flux_random import (
    FULL,
    SCHNELL,
    TOY,
    Models,
    make,
    schnell_of,
    shells,
    write_folder,
)
from predictors.compute.device import Placement
from predictors.flux.facts import Facts, read_facts

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
CASE = Case("dev", 64, 64, steps=4)


# -- arithmetic ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """FLUX.1-dev's configs; no weights are made."""
    return read_facts(write_folder(tmp_path_factory.mktemp("full") / "dev", FULL))[0]


@pytest.mark.parametrize(
    ("side", "text", "tera", "share_of_attention"),
    [(512, 512, 21.50, 0.077), (768, 512, 41.93, 0.132), (1024, 512, 74.38, 0.200),
     (1536, 512, 191.9, 0.345), (2048, 512, 418.1, 0.478), (1024, 256, 69.47, 0.191)],
)  # fmt: skip
def test_a_steps_operations_are_those_of_the_performance_page(
    full: Facts, side: int, text: int, tera: float, share_of_attention: float
) -> None:
    work = flux_floors.step(full.shape, text, (side // 16) ** 2)
    assert work.total / 1e12 == pytest.approx(tera, rel=3e-4)
    assert work.attention / work.total == pytest.approx(share_of_attention, abs=6e-4)


def test_schnell_has_its_own_tokens_and_no_guidance(tmp_path: Path) -> None:
    facts, _ = read_facts(write_folder(tmp_path / "schnell", FULL, SCHNELL))
    assert not facts.shape.has_guidance
    assert facts.default_text_tokens == 256
    assert facts.scheduler["use_dynamic_shifting"] is False


def test_operations_are_what_torch_counts_in_the_peers_modules(full: Facts) -> None:
    with torch.device("meta"):
        modules = shells(full.folder)
        tokens, image = 64, 256
        with FlopCounterMode(display=False) as decoder:
            modules["vae"].decode(torch.empty(1, 16, 128, 128))
        with FlopCounterMode(display=False) as transformer:
            modules["transformer"](
                hidden_states=torch.empty(1, image, 64),
                timestep=torch.empty(1),
                guidance=torch.empty(1),
                pooled_projections=torch.empty(1, 768),
                encoder_hidden_states=torch.empty(1, tokens, 4096),
                txt_ids=torch.empty(tokens, 3),
                img_ids=torch.empty(image, 3),
            )
    channels = modules["vae"].config.block_out_channels
    assert decoder.get_total_flops() == flux_floors.vae(channels, 16, 2, 1024, 1024).total
    embedders = 2 * 3072 * (2 * 256 + 768 + 3 * 3072)  # once per picture here, so not in a step
    ours = flux_floors.step(full.shape, tokens, image).total
    assert transformer.get_total_flops() == ours + embedders


def test_text_encoders_are_counted_as_the_page_does(full: Facts) -> None:
    modules = shells(full.folder)
    assert flux_floors.t5(modules["t5"].config, 512).total / 1e12 == pytest.approx(4.85, abs=0.01)
    assert flux_floors.clip(modules["clip"].config, 77).total / 1e9 == pytest.approx(13.3, abs=0.1)


def test_a_floor_is_each_part_at_its_own_ceiling() -> None:
    ceilings = Ceilings(bf16=100.0, fp8=200.0, attention={10: 50.0, 1000: 25.0})
    work = Operations(linear=400, attention=100, other=50)
    assert ceilings.floor_s(work, 12, is_fp8=False) == 4 + 2 + 0.5
    assert ceilings.floor_s(work, 12, is_fp8=True) == 2 + 2 + 0.5
    assert ceilings.floor_s(work, 900, is_fp8=True) == 2 + 4 + 0.5
    assert Ceilings(100.0, None, {10: 50.0}).floor_s(work, 10, is_fp8=True) == 6.5


# -- what is told ----------------------------------------------------------------------------------
def row(engine: str, seconds: float, case: Case = CASE, passes: int = 4) -> Row:
    runs = [Drawn(seconds + s, [1.0], {"here": 0.1}, []) for s in (0.0, 0.1, -0.1)]
    return summed_up(engine, case, runs, passes=passes, peak_bytes=2**30)


def test_the_table_has_a_line_per_row_and_compares_with_the_fastest_peer() -> None:
    rows = [
        row("diffusers eager", 8.0),
        row("diffusers compiled", 4.0),
        row("here turbo", 2.0, passes=3),
    ]
    rows.append(row("here lossless", 2.0, Case("dev", 96, 64, 4)))
    ceilings = Ceilings(1e12, None, {16: 1e12})
    derived = [flux_report.figures(r, Operations(2e11, 1e11), 16, ceilings) for r in rows]
    lines = flux_report.table(rows, derived).splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[0].split()[:6] == ["model", "size", "steps", "batch", "engine", "seconds"]
    assert [line.split()[-1] for line in lines[1:4]] == ["0.50x", "1.00x", "2.00x"]
    assert "4 (3)" in lines[3]  # passes where some steps are skipped
    assert lines[4].endswith("1.0")  # nobody to compare with: memory is last
    assert derived[0]["share_of_floor"] == pytest.approx(4 * 0.3 / 8)
    assert derived[2]["tflops"] == pytest.approx(3 * 0.3 / 2)


def test_goals_are_held_or_not_by_what_was_measured_and_absent_without_a_figure() -> None:
    case = Case("dev", 1024, 1024, 28)
    rows = [row("diffusers compiled", 3.9, case), row("here lossless", 3.0, case)]
    rows.append(row("here high", 3.0, case))
    found = {"start": {"warm_share_of_cold": 0.5}}
    goals = {goal["what"]: goal for goal in flux_goals.held(rows, [], found)}
    assert [goal["held"] for goal in goals.values()] == [True, False, False]
    assert "NO" in flux_goals.as_text(list(goals.values()))
    assert flux_goals.held(rows[:1], [], {}) == []


def test_an_answer_outside_the_peers_spread_is_told() -> None:
    def found(ours: float) -> dict[str, Any]:
        near = {"eager": 0.010, "compiled": 0.011, "here lossless": ours}
        return {
            "step 1": {"to float32": near, "to eager": {"compiled": 0.012, "here lossless": ours}}
        }

    assert all(flux_accuracy.verdict(found(0.0105), ["eager", "compiled"]).values())
    assert not any(flux_accuracy.verdict(found(0.02), ["eager", "compiled"]).values())


def test_a_profile_names_what_took_most_and_leaves_a_trace(tmp_path: Path) -> None:
    a = torch.randn(300, 300)
    kernels = flux_profile.trace(Clock(CPU), lambda: a @ a, tmp_path / "trace.json.gz")
    assert kernels[0][0] == "aten::mm"
    assert (tmp_path / "trace.json.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert "aten::mm" in flux_profile.as_text(kernels)


def test_marks_are_apart_by_what_lies_between_them() -> None:
    marks = Marks(Clock(CPU))
    for _ in range(3):
        marks.set()
    assert len(marks.gaps_ms()) == 2
    assert all(gap >= 0 for gap in marks.gaps_ms())
    assert Spread.of([3, 1, 2]).times(2) == Spread(4, 2, 6, 3)


# -- both sides ------------------------------------------------------------------------------------
@pytest.fixture(scope="module", autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """What the peer compiles here is nobody else's."""
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
    fast = schnell_of(models, write_folder(tmp_path / "fast", TOY, SCHNELL))
    state, source = fast.transformer.state_dict(), models.transformer.state_dict()
    assert all(tensor.data_ptr() == source[name].data_ptr() for name, tensor in state.items())
    assert {name.split(".")[1] for name in source.keys() - state.keys()} == {"guidance_embedder"}


def test_both_sides_answer_alike_on_the_same_weights_and_not_on_others(models: Models) -> None:
    facts, tokenizers = read_facts(models.folder)
    eager = Peer("eager", models, facts, tokenizers)
    ours = Ours(models, placement_for(CPU), settings_for("64x64", "lossless,high"))
    ours.open()
    found = flux_accuracy.velocities([eager], ours, CASE)
    assert found["verdict"] == {"as near to float32 as the farther peer": True}
    assert 0.01 < found["step 1"]["to float32"]["here high"] < 0.1  # fp8 is another precision
    latents = flux_accuracy.trajectories([eager], ours, CASE)
    assert all(each["finite"] for each in latents.values())
    assert latents["here lossless"]["to eager"] < 1e-5
    assert 0.001 < latents["here high"]["to here lossless"] < 0.3
    with torch.no_grad():
        bias = models.transformer.proj_out.bias
        bias += 0.01
        try:
            shifted = flux_accuracy.velocities([eager], ours, CASE)
        finally:
            bias -= 0.01
    assert not any(shifted["verdict"].values())
    ours.close()


def test_a_forward_in_float32_is_that_of_a_float32_module_and_leaves_weights_alone(
    models: Models,
) -> None:
    facts, tokenizers = read_facts(models.folder)
    narrow = make(models.folder, CPU, torch.bfloat16)
    peer = Peer("eager", narrow, facts, tokenizers)
    place = Placement(CPU, torch.bfloat16, "off")
    work = Ours(narrow, place, settings_for("64x64", "lossless")).prepare(CASE, "lossless")
    before = flux_accuracy.peer_velocity(peer, CASE, work, 1)
    with flux_accuracy.in_float32(narrow.transformer):
        exact = flux_accuracy.peer_velocity(peer, CASE, work, 1, torch.float32)
    assert 1e-3 < flux_accuracy.distance(before, exact) < 0.05  # bfloat16's own error
    assert torch.equal(flux_accuracy.peer_velocity(peer, CASE, work, 1), before)
    narrow.transformer.float()
    rounded = peer.noise(CASE).bfloat16()
    peer.noise = lambda case: rounded  # type: ignore[method-assign]
    plain = flux_accuracy.peer_velocity(peer, CASE, work, 1, torch.float32)
    assert flux_accuracy.distance(exact, plain) < 1e-5


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
        flux_goals.VAE_STAGE,
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


def test_full_size_is_refused_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        flux.read_options(["--device", "cpu"])
    assert "--toy" in capsys.readouterr().err


def imported(path: Path, seen: dict[Path, set[str]]) -> dict[Path, set[str]]:
    """Every file of the repository that importing `path` runs, with what each one imports."""
    if path in seen:
        return seen
    seen[path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            seen[path] |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            seen[path] |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for name in seen[path]:
        file = ROOT / f"{name.replace('.', '/')}.py"
        if name.startswith(("benchmarks", "predictors")) and file.is_file():
            imported(file, seen)
    return seen


def test_no_file_that_the_benchmark_runs_imports_kserve_or_a_server() -> None:
    files = imported(ROOT / "benchmarks/flux.py", {})
    assert ROOT / "predictors/flux/engine.py" in files
    roots = {name.partition(".")[0] for names in files.values() for name in names}
    assert roots.isdisjoint({"kserve", "fastapi", "starlette", "pydantic", "uvicorn"})


def test_both_starts_run_where_kserve_can_not_be_imported(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kserve.py").write_text("raise ImportError('not on this machine')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    start = flux_start.measure(models.folder, "64x64", "lossless", "cpu")
    for which in ("cold", "warm"):
        assert {"load_s", "warm_s", "first_picture_s", "import_s"} <= start[which].keys()
    assert start["warm_share_of_cold"] == start["warm"]["warm_s"] / start["cold"]["warm_s"]
