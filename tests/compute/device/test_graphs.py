"""A captured function gives the results of its function, checks its inputs and is counted after
ready.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from predictors import metrics
from predictors.compute.device.graphs import Captured, Graphs
from predictors.compute.device.placement import Placement

CPU = Placement(torch.device("cpu"), torch.float32, "off")
CUDA = Placement(torch.device("cuda"), torch.float32, "inductor")


def scaled(x: Tensor, by: Tensor) -> Tensor:
    return x * by + 1


def late_captures(model: str) -> float:
    return metrics.graph_captures_total.labels(model)._value.get()


def test_without_cuda_the_function_itself_is_called_with_any_shape() -> None:
    captured = Graphs("plain", CPU).capture(scaled, (torch.zeros(3), torch.zeros(3)))
    assert captured(torch.ones(2), torch.full((2,), 4.0)).tolist() == [5, 5]


def test_without_cuda_inputs_may_be_filled_in_place_too() -> None:
    captured = Graphs("plain", CPU).capture(scaled, (torch.zeros(3), torch.zeros(3)))
    for tensor in captured.inputs:
        tensor.fill_(2)
    assert captured(*captured.inputs).tolist() == [5, 5, 5]


def test_a_function_may_return_several_tensors() -> None:
    captured = Graphs("plain", CPU).capture(lambda x: (x + 1, x + 2), (torch.zeros(1),))
    assert [y.item() for y in captured(torch.zeros(1))] == [1, 2]


def added(carry: Tensor, x: Tensor) -> Tensor:
    return carry + 10 * x


def test_pieces_run_in_order_each_in_a_turn_of_its_own() -> None:
    captured = Graphs("pieces", CPU).capture_pieces(
        [torch.square, added, added], (torch.zeros(2),), "cut"
    )
    turns = list[str]()

    @contextmanager
    def turn() -> Iterator[None]:
        turns.append("begin")
        yield
        turns.append("end")

    assert captured(torch.tensor([1.0, 2.0]), turn=turn).tolist() == [21, 44]
    assert turns == ["begin", "end"] * 3


def test_captures_are_counted_after_ready_only_after_seal() -> None:
    graphs = Graphs("sealed", CPU)
    graphs.capture(torch.sin, (torch.zeros(1),))
    assert (graphs.count, late_captures("sealed")) == (1, 0)
    graphs.seal()
    graphs.capture(torch.sin, (torch.zeros(1),))
    assert (graphs.count, late_captures("sealed")) == (2, 1)


def test_planned_captures_after_seal_are_not_counted_as_late() -> None:
    graphs = Graphs("planned", CPU)
    graphs.seal()
    with graphs.planned():
        assert not graphs.is_sealed
        graphs.capture(torch.sin, (torch.zeros(1),))
    assert (graphs.count, late_captures("planned"), graphs.is_sealed) == (1, 0, True)
    graphs.capture(torch.sin, (torch.zeros(1),))
    assert (graphs.count, late_captures("planned")) == (2, 1)


def test_seal_writes_the_time_of_captures() -> None:
    graphs = Graphs("timed", CPU)
    graphs.capture(torch.sin, (torch.zeros(1),))
    graphs.seal()
    shown = metrics.model_phase_seconds.labels("timed", "capture")._value.get()
    assert shown == graphs.seconds > 0


def test_a_released_graph_cannot_be_called() -> None:
    graphs = Graphs("closed", CPU)
    captured = graphs.capture(torch.sin, (torch.zeros(1),))
    graphs.close()
    graphs.close()
    assert captured.inputs == ()
    with pytest.raises(RuntimeError, match="closed"):
        captured(torch.zeros(1))


def test_an_unreferenced_capture_is_freed() -> None:
    freed = threading.Event()

    class Weights:
        def __del__(self) -> None:
            freed.set()

        def __call__(self, x: Tensor) -> Tensor:
            return x

    graphs = Graphs("dropped", CPU)
    captured: Captured[Tensor] | None = graphs.capture(Weights(), (torch.zeros(1),))
    assert not freed.is_set()
    assert captured is not None
    captured = None
    assert freed.is_set()


# -- on a GPU ------------------------------------------------------------------------------------
@pytest.mark.gpu
def test_a_graph_gives_the_bits_of_its_function_for_new_inputs() -> None:
    graphs = Graphs("gpu", CUDA)
    weight = torch.randn(64, 64, device="cuda")

    def pass_(x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x @ weight)

    captured = graphs.capture(pass_, (torch.zeros(32, 64, device="cuda"),))
    for _ in range(3):
        x = torch.randn(32, 64, device="cuda")
        assert torch.equal(captured(x), pass_(x))
    captured.inputs[0].copy_(x)
    assert torch.equal(captured(*captured.inputs), pass_(x))


@pytest.mark.gpu
def test_graphs_of_one_pool_work_in_turns_and_share_memory() -> None:
    graphs = Graphs("turns", CUDA)
    make = [lambda x, n=n: (x.repeat(2**20) * n)[:4].clone() for n in range(1, 5)]
    x = torch.arange(4.0, device="cuda")
    captured = [graphs.capture(function, (x,)) for function in make]
    held = torch.cuda.memory_reserved()
    for _ in range(2):
        for n, run in enumerate(captured, 1):
            assert run(x).tolist() == [0, n, 2 * n, 3 * n]
    again = graphs.capture(make[0], (x,))
    assert again(x).tolist() == x.tolist()
    assert torch.cuda.memory_reserved() <= held


@pytest.mark.gpu
def test_another_shape_or_dtype_is_refused() -> None:
    captured = Graphs("shapes", CUDA).capture(torch.sin, (torch.zeros(4, 2, device="cuda"),))
    for wrong in (torch.zeros(1, 2, device="cuda"), torch.zeros(4, 2, device="cuda").double()):
        with pytest.raises(ValueError, match="captured for"):
            captured(wrong)
    with pytest.raises(ValueError, match="zip"):
        captured()


@pytest.mark.gpu
def test_inputs_and_results_go_between_inference_mode_and_none() -> None:
    with torch.inference_mode():
        captured = Graphs("modes", CUDA).capture(torch.sin, (torch.zeros(4, device="cuda"),))
        assert captured(torch.zeros(4, device="cuda")).sum() == 0
    assert captured(torch.zeros(4, device="cuda")).sum() == 0


@pytest.mark.gpu
def test_a_capture_that_fails_leaves_the_device_and_the_stream_as_they_were() -> None:
    graphs = Graphs("fails", CUDA)
    before = torch.cuda.current_stream()

    def reads(x: Tensor) -> Tensor:
        return x + x.sum().item()

    with pytest.raises(RuntimeError):
        graphs.capture(reads, (torch.zeros(4, device="cuda"),))
    assert torch.cuda.current_stream() == before
    captured = graphs.capture(torch.cos, (torch.zeros(4, device="cuda"),))
    assert captured(torch.zeros(4, device="cuda")).tolist() == [1, 1, 1, 1]


@pytest.mark.gpu
def test_another_thread_may_allocate_and_copy_during_a_capture() -> None:
    stop, failed = threading.Event(), []

    def neighbour() -> None:
        try:
            while not stop.is_set():
                x = torch.empty(2**22, device="cuda").fill_(1)
                failed.extend([] if x[:3].sum().item() == 3 else ["wrong"])
                del x
        except RuntimeError as error:
            failed.append(str(error))

    thread = threading.Thread(target=neighbour)
    thread.start()
    graphs = Graphs("neighbour", CUDA)
    try:
        x = torch.ones(256, 256, device="cuda")
        runs = [graphs.capture(lambda x, n=n: (x @ x) * n, (x,)) for n in range(20)]
        for n, run in enumerate(runs):
            assert run(x)[0, 0].item() == 256 * n
    finally:
        stop.set()
        thread.join()
    assert failed == []


@pytest.mark.gpu
def test_two_engines_capture_at_the_same_time() -> None:
    wrong = []

    def engine(n: int) -> None:
        graphs = Graphs(f"engine{n}", CUDA)
        with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
            x = torch.ones(128, 128, device="cuda")
            for k in range(10):
                found = graphs.capture(lambda x, k=k: (x @ x) * k, (x,))(x)[0, 0].item()
                wrong.extend([] if found == 128 * k else [(n, k, found)])
        graphs.close()

    threads = [threading.Thread(target=engine, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.gpu
def test_graphs_of_pieces_hand_on_what_they_made() -> None:
    graphs = Graphs("cut", CUDA)
    graphs.prioritise(-1)
    x = torch.zeros(2**16, device="cuda")
    whole = graphs.capture(lambda x: added(added(torch.square(x), x), x), (x,))
    cut = graphs.capture_pieces([torch.square, added, added], (x,))
    other = graphs.capture(lambda x: x.cos().sin().exp(), (x,))
    for seed in range(3):
        x = torch.randn(2**16, generator=torch.Generator().manual_seed(seed)).cuda()
        expected = whole(x).clone()
        other(x)
        assert torch.equal(cut(x), expected)


@pytest.mark.gpu
def test_closing_frees_the_memory() -> None:
    graphs = Graphs("memory", CUDA)
    x = torch.zeros(1, device="cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    captured = graphs.capture(lambda x: x.expand(2**26).contiguous(), (x,))
    assert torch.cuda.memory_reserved() > before
    graphs.close()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before
    with pytest.raises(RuntimeError, match="closed"):
        captured(x)
