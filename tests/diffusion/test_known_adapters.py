"""The adapters that requests may use, and those that leave while a request is prepared."""

from __future__ import annotations

import threading

import pytest

from predictors import metrics
from predictors.compute.checkpoint.summary import AdapterSummary
from predictors.diffusion.known_adapters import KnownAdapters
from predictors.diffusion.request import LoraScale
from predictors.errors import InvalidRequest
from tests.fakes import PATIENCE_S


def summary(name: str) -> AdapterSummary:
    return AdapterSummary(name, f"{name}.safetensors", "kohya", "00", 4, {"transformer": 3}, 100)


def known(*names: str, model: str = "known") -> KnownAdapters:
    made = KnownAdapters(model)
    for name in names:
        made.add(summary(name))
    return made


def test_known_names_are_taken_in_the_callers_order_without_scale_0() -> None:
    asked = (LoraScale("b", -4.0), LoraScale("c", 0.0), LoraScale("a"))
    assert known("a", "b", "c").check(asked) == (asked[0], asked[2])
    assert known().check(()) == ()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((LoraScale("c"),), r"there is no adapter 'c'; loaded: a, b$"),
        ((LoraScale("a"), LoraScale("a", 0.5)), "adapter 'a' is asked for twice"),
        ((LoraScale("a", 4.1),), r"scale of adapter 'a' must be a number from -4 to 4, not 4\.1"),
        ((LoraScale("a", float("nan")),), "not nan"),
        ((LoraScale("a", float("-inf")),), "not -inf"),
        (tuple(LoraScale(str(i)) for i in range(9)), "loras has 9 adapters; at most 8"),
        ((LoraScale("x" * 10**6),), "there is no adapter 'xxx"),
    ],
    ids=["unknown", "twice", "large", "nan", "infinite", "many", "long"],
)
def test_a_wrong_adapter_is_a_400_of_the_field(asked: tuple[LoraScale, ...], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        known("a", "b").check(asked)
    assert caught.value.param == "loras"
    assert len(caught.value.message) < 200


def test_a_withdrawn_adapter_is_waited_for_until_no_request_holds_it() -> None:
    adapters, is_free = known("a", "b"), threading.Event()

    def remove() -> None:
        adapters.wait_unheld("a")
        is_free.set()

    with adapters.held([LoraScale("a"), LoraScale("b")]):
        with adapters.held([LoraScale("a")]):
            taken = adapters.withdraw("a")
            assert taken is not None
            assert adapters.names == ("b",)
            thread = threading.Thread(target=remove)
            thread.start()
            assert not is_free.is_set()
        assert not is_free.is_set()
    assert is_free.wait(PATIENCE_S)
    thread.join(PATIENCE_S)
    assert adapters.withdraw("a") is None
    with (
        pytest.raises(InvalidRequest, match="adapter 'a' was removed while"),
        adapters.held([LoraScale("b"), LoraScale("a")]),
    ):
        raise AssertionError
    adapters.wait_unheld("b")  # nothing was left behind


def test_series_come_and_go_with_their_adapters() -> None:
    adapters = known("a", "b", model="known-series")
    adapters.count_picture([LoraScale("a"), LoraScale("gone")])

    def shown() -> dict[str, float]:
        return {
            sample.labels["lora"]: sample.value
            for family in metrics.lora_images_total.collect()
            for sample in family.samples
            if sample.labels["model"] == "known-series" and sample.name.endswith("_total")
        }

    assert shown() == {"a": 1, "b": 0}
    assert metrics.loras_loaded.labels("known-series")._value.get() == 2
    adapters.withdraw("a")
    adapters.forget("a")
    adapters.count_picture([LoraScale("a")])
    assert shown() == {"b": 0}
    assert metrics.loras_loaded.labels("known-series")._value.get() == 1
