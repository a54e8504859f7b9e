"""Compiled units have one graph per shape, and the guard counts compilations after the seal."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch

from predictors import metrics
from predictors.compute.compile.compiling import CompileListener, RecompileGuard, compiled
from predictors.compute.device.placement import Placement

EAGER = Placement(torch.device("cpu"), torch.float32, "off")
AOT = Placement(torch.device("cpu"), torch.float32, "aot_eager")


def test_off_returns_the_function_itself() -> None:
    assert compiled(torch.sin, EAGER, "sin") is torch.sin


@pytest.mark.parametrize("partial", [None, ModuleType("begun")])
def test_a_library_that_another_thread_imports_is_hooked_later(
    monkeypatch: pytest.MonkeyPatch, partial: ModuleType | None
) -> None:
    import torch._dynamo.callback

    listener = CompileListener()
    with monkeypatch.context() as importing:
        for name in ("torch._dynamo.callback", "triton.knobs"):
            if partial is None:
                importing.delitem(sys.modules, name, raising=False)
            else:
                importing.setitem(sys.modules, name, partial)
        listener.listen()
    handler = torch._dynamo.callback.callback_handler
    assert listener._on_graph_start not in handler.start_callbacks
    assert not listener._has_triton
    listener._has_triton = True  # its hooks can't be taken out again
    listener.listen()
    assert listener._on_graph_start in handler.start_callbacks
    handler.remove_start_callback(listener._on_graph_start)
    handler.remove_end_callback(listener._on_graph_end)


def test_a_new_shape_after_the_seal_is_counted_and_an_old_one_is_not() -> None:
    unit = compiled(lambda x: x * 2 + 1, AOT, "affine")
    guard = RecompileGuard("guarded")
    unit(torch.ones(3))
    unit(torch.ones(4))
    guard.seal()
    unit(torch.ones(3))
    unit(torch.ones(4))
    assert guard.check() == 0
    unit(torch.ones(5))
    assert guard.check() == 1
    assert guard.check() == 1  # counted once
    assert metrics.recompilations_total.labels("guarded")._value.get() == 1


def test_planned_compilations_after_the_seal_are_not_counted() -> None:
    unit = compiled(lambda x: x * 5 + 1, AOT, "planned")
    guard = RecompileGuard("planning")
    guard.seal()
    unit(torch.ones(3))
    with guard.planned():
        unit(torch.ones(4))
        assert guard.check() == 1  # of before the block
    assert guard.check() == 1
    unit(torch.ones(5))
    assert guard.check() == 2
    assert metrics.recompilations_total.labels("planning")._value.get() == 2


def test_more_shapes_than_dynamos_default_limit_compile() -> None:
    unit = compiled(lambda x: x.cos(), AOT, "cos")
    for n in range(2, 14):
        assert torch.equal(unit(torch.zeros(n)), torch.ones(n))


def test_a_graph_break_is_an_error() -> None:
    unit = compiled(lambda x: x + 1 if x.sum() > 0 else x, AOT, "branch")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        unit(torch.ones(2))


def test_a_compilation_of_another_thread_is_not_counted() -> None:
    guard = RecompileGuard("mine")
    guard.seal()
    unit = compiled(lambda x: x - 7, AOT, "minus")
    other = threading.Thread(target=unit, args=(torch.ones(2),))
    other.start()
    other.join()
    assert guard.check() == 0


def test_the_guard_counts_after_dynamo_was_reset() -> None:
    guard = RecompileGuard("reset")
    guard.seal()
    torch._dynamo.reset()
    guard.check()
    compiled(lambda x: x - 11, AOT, "minus")(torch.ones(2))
    assert guard.check() == 1


def test_an_unsealed_guard_counts_nothing() -> None:
    guard = RecompileGuard("warming")
    compiled(lambda x: x - 9, AOT, "minus")(torch.ones(2))
    assert guard.check() == 0


KERNELS = """
import triton
from tests.compute.compile.hopper_kernel import compile_for
from predictors.compute.compile.compiling import RecompileGuard

others = []
triton.knobs.runtime.jit_post_compile_hook = lambda **kernel: others.append(kernel["repr"])
compile_for(32)
guard = RecompileGuard("kernels")
guard.seal()
compile_for(32)
assert guard.check() == 0, "the same kernel again"
compile_for(64)
assert guard.check() == 1, "another one"
RecompileGuard("second").seal()
compile_for(128)
assert guard.check() == 2, "counted once, however many guards there are"
assert len(others) == 3, "a hook that was there before is still called"
"""


def test_a_triton_kernel_after_the_seal_is_counted(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", KERNELS],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
