"""The FLUX benchmark without an engine: its arithmetic is the page's, rows, goals and tables follow
from timings, and no file it runs imports KServe."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import journal, profiling
from benchmarks.common.ceilings import Ceilings, Operations
from benchmarks.common.clock import Clock, Marks
from benchmarks.common.stats import Spread
from benchmarks.flux import __main__ as flux
from benchmarks.flux import accuracy, floors, goals, start, tables
from benchmarks.flux.cases import Case, Drawn, Row, figures, summed_up
from benchmarks.flux.random_weights import FULL, SCHNELL, TOY, shells, write_folder
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
    work = floors.step(full.shape, text, (side // 16) ** 2)
    assert work.total / 1e12 == pytest.approx(tera, rel=3e-4)
    assert work.attention / work.total == pytest.approx(share_of_attention, abs=6e-4)


def test_schnell_has_its_own_tokens_and_no_guidance(tmp_path: Path) -> None:
    facts, _ = read_checkpoint(write_folder(tmp_path / "schnell", FULL, SCHNELL))
    assert not facts.shape.has_guidance
    assert facts.default_text_tokens == 256
    assert facts.schedule.use_dynamic_shifting is False


def test_operations_are_what_torch_counts_in_the_peers_modules(full: FluxConfig) -> None:
    with torch.device("meta"):
        modules = shells(full.folders["transformer"].parent)
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
    assert decoder.get_total_flops() == floors.vae(channels, 16, 2, 1024, 1024).total
    embedders = 2 * 3072 * (2 * 256 + 768 + 3 * 3072)  # once per picture here, so not in a step
    ours = floors.step(full.shape, tokens, image).total
    assert transformer.get_total_flops() == ours + embedders


def test_text_encoders_are_counted_as_the_page_does(full: FluxConfig) -> None:
    modules = shells(full.folders["transformer"].parent)
    assert floors.t5(modules["t5"].config, 512).total / 1e12 == pytest.approx(4.85, abs=0.01)
    assert floors.clip(modules["clip"].config, 77).total / 1e9 == pytest.approx(13.3, abs=0.1)


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


def results_of(*rows: Row) -> dict[str, Any]:
    """The results of a run with these rows."""
    run = flux.read_options(["--toy"])
    ceilings = Ceilings(1e12, None, {16: 1e12})
    run.rows = list(rows)
    run.figures = [figures(each, Operations(2e11, 1e11), 16, ceilings) for each in rows]
    return run.results()


def test_the_table_has_a_line_per_row_and_compares_with_the_fastest_peer() -> None:
    found = results_of(
        row("diffusers eager", 8.0),
        row("diffusers compiled", 4.0),
        row("here turbo", 2.0, passes=3),
        row("here lossless", 2.0, Case("dev", 96, 64, 4)),
    )
    head, *lines = tables.clock(found)
    assert head[:3] == ("case", "engine", "s")
    assert [line[-1] for line in lines] == ["0.50", "1.00", "2.00", "-"], "the last has no peer"
    assert lines[2][1] == "here turbo (3 calls)"
    assert lines[3][:3] == ("dev 96x64, 4 steps", "here lossless", "2.000")
    assert found["rows"][0]["share_of_floor"] == pytest.approx(4 * 0.3 / 8)
    assert found["rows"][2]["tflops"] == pytest.approx(3 * 0.3 / 2)
    assert "here turbo (3 calls)" in journal.as_text(tables.OF_A_RUN, found)


def test_energy_is_per_picture_and_a_goal_and_absent_where_it_was_not_counted() -> None:
    case, two = Case("dev", 1024, 1024, 28), Case("dev", 512, 512, 28, batch=2)
    runs = [Drawn(3.0, [1.0], {"here": 0.1}, [])] * 3
    per_picture = summed_up("here high", two, runs, passes=28, joules=3000.0).joules
    assert per_picture == 500.0
    found = results_of(
        replace(row("here lossless", 4.0, case), joules=2300.0),
        replace(row("here turbo", 2.0, case), joules=900.0),
        summed_up("here high", two, runs, passes=28, joules=3000.0),
        row("diffusers compiled", 4.0, case),
    )
    assert list(tables.energy(found)) == [
        ("energy", "engine", "kJ per picture", "mean W"),
        ("dev 1024x1024, 28 steps", "here lossless", "2.30", "575"),
        ("dev 1024x1024, 28 steps", "here turbo", "0.90", "450"),
        ("dev 512x512, 28 steps, 2 pictures", "here high", "0.50", "333"),
    ]
    held = {goal["what"]: goal["held"] for goal in goals.held(found) if "J per" in goal["what"]}
    assert held == {"here lossless, J per picture": True, "here turbo, J per picture": False}
    assert not list(tables.energy(results_of(row("here lossless", 4.0, case))))


def test_goals_are_held_or_not_by_what_was_measured_and_absent_without_a_figure() -> None:
    case = Case("dev", 1024, 1024, 28)
    peer = row("diffusers compiled", 3.9, case)
    found = results_of(peer, row("here lossless", 3.0, case), row("here high", 3.0, case))
    held = goals.held(found | {"start": {"warm_share_of_cold": 0.5}})
    assert [goal["held"] for goal in held] == [True, False, False]
    assert goals.held(results_of(peer)) == goals.held({}) == []


def test_an_answer_outside_the_peers_spread_is_told() -> None:
    def found(ours: float) -> dict[str, Any]:
        near = {"eager": 0.010, "compiled": 0.011, "here lossless": ours}
        return {
            "step 1": {"to float32": near, "to eager": {"compiled": 0.012, "here lossless": ours}}
        }

    assert all(accuracy.verdict(found(0.0105), ["eager", "compiled"]).values())
    assert not any(accuracy.verdict(found(0.02), ["eager", "compiled"]).values())


def test_a_profile_names_what_took_most_and_leaves_a_trace(tmp_path: Path) -> None:
    a = torch.randn(1500, 1500)  # more work than whatever interrupts the rest
    kernels = profiling.trace(Clock(CPU), lambda: a @ a, tmp_path / "trace.json.gz")
    assert kernels[0][0] == "aten::mm"
    assert (tmp_path / "trace.json.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert "aten::mm" in profiling.as_text(kernels)


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


def imports_of(path: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """Those that run when the file is imported; of a benchmark's file also those in functions."""
    is_benchmark = path.is_relative_to(ROOT / "benchmarks")
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif is_benchmark or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)


def imported(path: Path, seen: dict[Path, set[str]]) -> dict[Path, set[str]]:
    """Every file of the repository that importing `path` runs, with what each one imports."""
    if path in seen:
        return seen
    seen[path] = set()
    for node in imports_of(path):
        if isinstance(node, ast.Import):
            seen[path] |= {alias.name for alias in node.names}
        elif node.module:
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
    found = start.measure(write_folder(tmp_path / "dev", TOY), "64x64", "lossless", "cpu")
    for which in ("cold", "warm"):
        assert {"load_s", "warm_s", "first_picture_s", "import_s"} <= found[which].keys()
    assert found["warm_share_of_cold"] == found["warm"]["warm_s"] / found["cold"]["warm_s"]
