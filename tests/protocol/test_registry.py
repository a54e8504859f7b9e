"""The registry: models by name, their readiness, and the requests in flight."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from predictors import metrics
from predictors.errors import Draining, NotFound, NotReady
from predictors.protocol.bytes_in_flight import Charge
from predictors.protocol.call import Call
from predictors.protocol.key_file import ApiKey, digest_of, write_keys
from predictors.protocol.registry import Registry
from predictors.settings import AccessSettings, Settings
from tests.protocol.openai.doubles import Model


class Startable(Model):
    """A model that loads by itself; the registry must only ask whether it is alive."""

    is_alive = True

    def start(self, on_failed: Any = None) -> None:
        raise NotImplementedError

    def cut_off(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError


@pytest.fixture
def registry() -> Registry:
    return Registry([Startable("one"), Startable("two")], Settings())


def model(registry: Registry, name: str) -> Any:
    return registry.find(name)


def test_a_probe_without_a_key_learns_no_names_of_models(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(write_keys([ApiKey("ann", digest_of("secret"), models=frozenset({"two"}))]))
    settings = Settings(access=AccessSettings(keys_file=str(path)))
    registry = Registry([Startable("one"), Startable("two")], settings)
    for call in (None, Call({}, protocol="v2_rest"), Call({"x-api-key": "no"}, protocol="v2_grpc")):
        with pytest.raises(NotFound) as caught:
            registry.find("three", call=call)
        assert caught.value.message == "there is no model 'three'"
    known = Call({"x-api-key": "secret"}, protocol="v2_rest")
    assert registry.callers.refusal(known, "/v2") is None
    with pytest.raises(NotFound, match=r"served: two$"):
        registry.find("three", call=known)


def test_models_are_found_by_name_and_version_1(registry: Registry) -> None:
    assert registry.find("one") is registry.find("one", "1")
    with pytest.raises(NotFound, match="no model 'three'; served: one, two"):
        registry.find("three")
    with pytest.raises(NotFound, match="no version '2'"):
        registry.find("one", "2")
    with pytest.raises(NotFound) as caught:
        registry.find("x" * 10**6)
    assert len(caught.value.message) < 200


def test_the_label_of_a_model_that_is_not_served_is_unknown(registry: Registry) -> None:
    assert [registry.label(x) for x in ("one", "three", "")] == ["one", "unknown", "unknown"]


async def test_all_are_ready_when_every_model_is(registry: Registry) -> None:
    assert await registry.all_ready()
    model(registry, "two").is_ready = False
    assert await registry.is_ready("one")
    assert not await registry.all_ready()
    assert not await Registry([], Settings()).all_ready()


def test_requests_in_flight_are_counted_by_a_gauge(registry: Registry) -> None:
    for name in ("one", "two", "one"):
        registry.begin_request(name)
    assert registry.in_flight == 3
    assert REGISTRY.get_sample_value("predictors_requests_in_flight") == 3
    for _ in range(3):
        registry.end_request()
    assert REGISTRY.get_sample_value("predictors_requests_in_flight") == 0


async def test_the_heap_is_trimmed_after_a_small_request_too(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, is_trimmed = asyncio.get_running_loop(), asyncio.Event()
    wake = partial(loop.call_soon_threadsafe, is_trimmed.set)
    monkeypatch.setattr("predictors.protocol.registry.trim", wake)
    monkeypatch.setattr("predictors.protocol.heap_trims.TRIM_AFTER_OTHERS_S", 0.0)
    registry.release_bytes(Charge(registry.bytes_in_flight))
    assert await asyncio.wait_for(is_trimmed.wait(), 60.0)
    registry.close()


def test_one_dead_engine_makes_the_process_not_live(registry: Registry) -> None:
    assert registry.is_live()
    model(registry, "two").is_alive = False
    assert not registry.is_live()


async def test_draining_refuses_new_requests_and_waits_for_those_in_flight(
    registry: Registry,
) -> None:
    metrics.draining.set(0)
    registry.begin_request("one")
    registry.drain()
    assert metrics.draining._value.get() == 1
    assert registry.is_draining
    assert not await registry.is_ready("one")
    with pytest.raises(Draining):
        registry.begin_request("two")
    assert registry.in_flight == 1
    assert not await registry.wait_idle(0.001)
    registry.end_request()
    assert await registry.wait_idle(20.0)
    metrics.draining.set(0)


async def test_a_withdrawn_model_can_be_restored(registry: Registry) -> None:
    registry.withdraw("one")
    assert not await registry.is_ready("one")
    with pytest.raises(NotReady, match="model 'one' is unloaded"):
        registry.begin_request("one")
    registry.begin_request("two")
    registry.restore("one")
    registry.begin_request("one")
    assert registry.in_flight == 2
    for change in (registry.withdraw, registry.restore):
        with pytest.raises(NotFound):
            change("three")
