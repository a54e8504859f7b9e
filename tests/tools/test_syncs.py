"""Operations that make host and device wait for each other are counted; arithmetic is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.tools.syncs import count_host_syncs, no_host_syncs

WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0] > 0),
    "float": lambda x: float(x[0]),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "where": lambda x: torch.where(x > 0),
    "allclose": lambda x: torch.allclose(x, x),
    "repeats": lambda x: x.repeat_interleave(x.long()),
    "equal": lambda x: torch.equal(x, x),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "upload": lambda x: x + torch.tensor([1.0, 2.0]),
    "move": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("is_inference", [False, True])
@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_counted(name: str, is_inference: bool) -> None:
    with torch.inference_mode(is_inference), count_host_syncs() as found:
        WAITS[name](torch.ones(2))
    assert found.syncs >= 1, name


@pytest.mark.parametrize("is_inference", [False, True])
def test_arithmetic_views_and_integer_indexing_do_not_wait(is_inference: bool) -> None:
    x, w, rows = torch.ones(4, 4), torch.ones(4, 4), torch.arange(2)
    with torch.inference_mode(is_inference), count_host_syncs() as found:
        y = torch.nn.functional.linear(x, w).softmax(-1)[rows]
        y = torch.where(y > 0, y, x[:2])
        y = torch.stack([y[0], y[1]]).to(torch.bfloat16) + 1
        torch.cat([y, y]).view(-1)
    assert found.syncs == 0, found


FORBIDDEN: dict[str, Callable[[torch.Tensor], object]] = {
    name: WAITS[name] for name in ("item", "bool", "float", "nonzero", "mask", "tolist", "cpu")
} | {
    "upload": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "stream": lambda x: torch.cuda.current_stream(x.device).synchronize(),
}


def _replayed(x: torch.Tensor) -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x + 1
    with no_host_syncs():
        graph.replay()


def _waited_for_by_event(x: torch.Tensor) -> None:
    with no_host_syncs():
        event = torch.cuda.Event()
        event.record()
        event.synchronize()


def _copied_both_ways(x: torch.Tensor) -> None:
    pinned = torch.ones(2).pin_memory()
    with no_host_syncs():
        x.copy_(pinned, non_blocking=True)
        pinned.copy_(x, non_blocking=True)


ALLOWED = (_replayed, _waited_for_by_event, _copied_both_ways)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_wait_is_refused_on_a_gpu_and_allowed_again_afterwards(name: str) -> None:
    x = torch.ones(2, device="cuda")
    FORBIDDEN[name](x)  # by itself it is fine
    with pytest.raises(RuntimeError, match="synchroniz"), no_host_syncs():
        FORBIDDEN[name](x)
    assert torch.cuda.get_sync_debug_mode() == 0
    FORBIDDEN[name](x)


@pytest.mark.gpu
@pytest.mark.parametrize("work", ALLOWED)
def test_asynchronous_operations_are_allowed(
    work: Callable[[torch.Tensor], object],
) -> None:
    work(torch.ones(2, device="cuda"))


def test_forbidding_syncs_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    has_run = False
    with pytest.raises(RuntimeError), no_host_syncs():
        has_run = True
    assert not has_run
