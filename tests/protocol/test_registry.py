"""The door: who is served, who is ready, who may still come in."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY

from predictors import metrics
from predictors.errors import Draining, NotFound, NotReady
from predictors.protocol.registry import Registry
from predictors.settings import Settings


class Host:
    """As much of a host as liveness asks."""

    def __init__(self) -> None:
        self.is_alive = True


class Model:
    """As much of a model as the registry asks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_ready = True
        self.host = Host()

    async def healthy(self) -> bool:
        return self.is_ready

    def get_input_types(self) -> list[dict[str, Any]]:
        return []

    def get_output_types(self) -> list[dict[str, Any]]:
        return []

    async def infer(self, request: Any, call: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def registry() -> Registry:
    """Two ready models."""
    return Registry([Model("one"), Model("two")], Settings())


def model(registry: Registry, name: str) -> Any:
    return registry.find(name)


def test_models_are_found_by_name_and_version_1(registry: Registry) -> None:
    assert registry.find("one") is registry.find("one", "1")
    with pytest.raises(NotFound, match="no model 'three'; served: one, two"):
        registry.find("three")
    with pytest.raises(NotFound, match="no version '2'"):
        registry.find("one", "2")
    with pytest.raises(NotFound) as caught:
        registry.find("x" * 10**6)
    assert len(caught.value.message) < 200


def test_labels_are_bounded_whatever_callers_send(registry: Registry) -> None:
    assert [registry.label(x) for x in ("one", "three", "")] == ["one", "unknown", "unknown"]


async def test_all_are_ready_when_each_is(registry: Registry) -> None:
    assert await registry.all_ready()
    model(registry, "two").is_ready = False
    assert await registry.is_ready("one")
    assert not await registry.all_ready()
    assert not await Registry([], Settings()).all_ready()


def test_the_gauge_of_requests_in_flight_is_what_the_operator_is_shown(registry: Registry) -> None:
    for name in ("one", "two", "one"):
        registry.enter(name)
    assert registry.in_flight == 3
    assert REGISTRY.get_sample_value("predictors_requests_in_flight") == 3
    for _ in range(3):
        registry.leave()
    assert REGISTRY.get_sample_value("predictors_requests_in_flight") == 0


def test_one_dead_engine_is_enough_to_be_restarted(registry: Registry) -> None:
    assert registry.is_live()
    model(registry, "two").is_alive = False
    assert not registry.is_live()


async def test_draining_closes_the_door_but_lets_those_inside_finish(registry: Registry) -> None:
    metrics.draining.set(0)
    registry.enter("one")
    registry.drain()
    assert metrics.draining._value.get() == 1
    assert registry.is_draining
    assert not await registry.is_ready("one")
    with pytest.raises(Draining):
        registry.enter("two")
    assert registry.in_flight == 1
    assert not await registry.wait_idle(0.001)
    registry.leave()
    assert await registry.wait_idle(20.0)
    metrics.draining.set(0)


async def test_a_withdrawn_model_comes_back(registry: Registry) -> None:
    registry.withdraw("one")
    assert not await registry.is_ready("one")
    with pytest.raises(NotReady, match="model 'one' is unloaded"):
        registry.enter("one")
    registry.enter("two")
    registry.restore("one")
    registry.enter("one")
    assert registry.in_flight == 2
    for change in (registry.withdraw, registry.restore):
        with pytest.raises(NotFound):
            change("three")
