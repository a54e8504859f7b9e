"""The GPU benchmark's own code on a toy: its arithmetic is the page's, both sides draw the same
pictures, the table and the JSON have what people look for, and nothing needs KServe."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import profiling as flux_profile
from benchmarks.common.clock import Clock, Marks, Spread
from benchmarks.flux import __main__ as flux
from benchmarks.flux import accuracy as flux_accuracy
from benchmarks.flux import floors as flux_floors
from benchmarks.flux import goals as flux_goals
from benchmarks.flux import report as flux_report
from benchmarks.flux import start as flux_start
from benchmarks.flux.cases import Case, Drawn, Row, summed_up
from benchmarks.flux.floors import Ceilings, Operations
from benchmarks.flux.random_weights import (
    FULL,
    SCHNELL,
    TOY,
    shells,
    write_folder,
)
from predictors.models.flux.config import FluxConfig, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
CASE = Case("dev", 64, 64, steps=4)


# -- arithmetic ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> FluxConfig:
    """FLUX.1-dev's configs; no weights are made."""
    return read_checkpoint(write_folder(tmp_path_factory.mktemp("full") / "dev", FULL))[0]


@pytest.mark.parametrize(
    ("side", "text", "tera", "share_of_attention"),
    [(512, 512, 21.50, 0.077), (768, 512, 41.93, 0.132), (1024, 512, 74.38, 0.200),
     (1536, 512, 191.9, 0.345), (2048, 512, 418.1, 0.478), (1024, 256, 69.47, 0.191)],
)  # fmt: skip
def test_a_steps_operations_are_those_of_the_performance_page(
    full: FluxConfig, side: int, text: int, tera: float, share_of_attention: float
) -> None:
    work = flux_floors.step(full.shape, text, (side // 16) ** 2)
    assert work.total / 1e12 == pytest.approx(tera, rel=3e-4)
    assert work.attention / work.total == pytest.approx(share_of_attention, abs=6e-4)


def test_schnell_has_its_own_tokens_and_no_guidance(tmp_path: Path) -> None:
    facts, _ = read_checkpoint(write_folder(tmp_path / "schnell", FULL, SCHNELL))
    assert not facts.shape.has_guidance
    assert facts.default_text_tokens == 256
    assert facts.scheduler["use_dynamic_shifting"] is False


def test_operations_are_what_torch_counts_in_the_peers_modules(full: FluxConfig) -> None:
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


def test_text_encoders_are_counted_as_the_page_does(full: FluxConfig) -> None:
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
    a = torch.randn(1500, 1500)  # more work than whatever interrupts the rest
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


# -- what may be run, and where -------------------------------------------------------------------
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
    files = imported(ROOT / "benchmarks/flux/__main__.py", {})
    assert ROOT / "predictors/diffusion/engine.py" in files
    roots = {name.partition(".")[0] for names in files.values() for name in names}
    assert roots.isdisjoint({"kserve", "fastapi", "starlette", "pydantic", "uvicorn"})


def test_both_starts_run_where_kserve_can_not_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kserve.py").write_text("raise ImportError('not on this machine')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    start = flux_start.measure(write_folder(tmp_path / "dev", TOY), "64x64", "lossless", "cpu")
    for which in ("cold", "warm"):
        assert {"load_s", "warm_s", "first_picture_s", "import_s"} <= start[which].keys()
    assert start["warm_share_of_cold"] == start["warm"]["warm_s"] / start["cold"]["warm_s"]
