"""Steps are counted with their tags, and spans measure what their block launches."""

from __future__ import annotations

import pytest
import torch

from predictors.compute.device.pacing import DeviceSpan, StepPacer
from predictors.compute.device.placement import Placement

CPU = Placement(torch.device("cpu"), torch.float32, "off")


def test_finished_steps_come_once_in_order_with_their_tags() -> None:
    pacer: StepPacer[int] = StepPacer(CPU)
    for tag in (3, 1, 2):
        with pacer.step(tag):
            pass
    assert [done.tag for done in pacer.wait()] == [3, 1, 2]
    assert pacer.wait() == []


def test_a_step_that_raises_is_not_counted() -> None:
    pacer: StepPacer[str] = StepPacer(CPU)
    with pytest.raises(ValueError, match="broken"), pacer.step("one"):
        raise ValueError("broken")
    assert pacer.wait() == []


def test_a_span_has_the_seconds_of_its_block() -> None:
    span = DeviceSpan(CPU)
    with span:
        torch.ones(100, 100) @ torch.ones(100, 100)
    assert 0 < span.seconds() < 60
    assert span.seconds() == span.seconds()
