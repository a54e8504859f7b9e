"""Each way of making host and device wait for each other is seen, and plain arithmetic is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from predictors.compute.syncs import count_host_syncs

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
