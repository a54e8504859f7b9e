"""Names with an adapter: `MODEL:ADAPTER` on the registry, for keys and in lists."""

from __future__ import annotations

import re
from typing import Any

import pytest

from predictors.errors import Forbidden, InvalidRequest, NotFound, NotSupported
from predictors.protocol.call import ANY_ADAPTER, AdapterAccess, Call
from predictors.protocol.openapi.document import openapi_document
from predictors.protocol.registry import Registry
from predictors.settings import ServerSettings, Settings
from tests.protocol.openai.doubles import IMAGES, Painter, Wire, application, post


class Adapted(Painter):
    """A painter with adapters."""

    def __init__(self, name: str = "flux", *adapters: str) -> None:
        super().__init__(name)
        self.adapter_names = adapters


@pytest.fixture
def registry() -> Registry:
    models = [Adapted("flux", "a", "b"), Painter("plain"), Adapted("x:y", "a")]
    return Registry(models, Settings(server=ServerSettings(aliases="art=flux")))


def call(*models: str) -> Call:
    made = Call({}, protocol="v2_rest")
    made.models = frozenset(models)
    return made


def test_an_adapter_is_a_name_of_its_model(registry: Registry) -> None:
    for name, own, adapter in (
        ("flux:a", "flux", "a"), ("art:b", "flux", "b"), ("x:y:a", "x:y", "a"),
    ):  # fmt: skip
        asking = call()
        assert registry.find(name, call=asking).name == own
        assert asking.adapters == AdapterAccess(adapter)
        assert registry.adapter_of(name) == adapter
    plain = call()
    registry.find("x:y", call=plain)
    assert plain.adapters is ANY_ADAPTER
    assert registry.label("flux:a") == registry.label("flux:gone") == "flux"
    assert registry.label("plain:a") == "unknown"


def test_an_unknown_adapter_is_answered_with_those_that_there_are(registry: Registry) -> None:
    with pytest.raises(NotFound, match=r"^model 'flux' has no adapter 'c'; served: a, b$"):
        registry.find("flux:c", call=call())
    with pytest.raises(NotFound, match=r"^there is no model 'plain:a'; served: flux, plain, "):
        registry.find("plain:a", call=call())
    with pytest.raises(NotFound) as caught:
        registry.find("flux:" + "c" * 10**6)
    assert len(caught.value.message) < 200


def test_names_are_listed_with_their_adapters(registry: Registry) -> None:
    everything = ["flux", "plain", "x:y", "art", "flux:a", "flux:b", "x:y:a"]
    assert list(registry.names_for(call())) == everything
    assert list(registry.names_for(call("flux"))) == ["flux", "art", "flux:a", "flux:b"]
    assert list(registry.names_for(call("art"))) == ["flux", "art", "flux:a", "flux:b"]
    assert list(registry.names_for(call("flux:a"))) == ["flux:a"]
    assert list(registry.names_for(call("art:b", "plain"))) == ["plain", "flux:b"]
    assert list(registry.names_for(call("x:y"))) == ["x:y", "x:y:a"]


def test_a_key_for_a_model_may_use_its_adapters(registry: Registry) -> None:
    asking = call("flux")
    registry.find("flux:a", call=asking)
    assert asking.adapters == AdapterAccess("a", None)


def test_a_key_for_an_adapter_may_use_that_alone(registry: Registry) -> None:
    asking = call("flux:a")
    registry.find("flux:a", call=asking)
    assert asking.adapters == AdapterAccess("a", frozenset({"a"}))
    for name in ("flux", "flux:b", "art", "plain", "x:y", "x:y:a"):
        with pytest.raises(Forbidden, match="the API key may not use model"):
            registry.find(name, call=call("flux:a"))
    with pytest.raises(NotFound, match=r"has no adapter 'c'; served: a$"):  # b is not named
        registry.find("flux:c", call=call("flux:a"))
    with pytest.raises(Forbidden):
        registry.find("flux:c", call=call("plain"))


def test_an_adapter_is_not_loaded_or_unloaded_as_a_model(registry: Registry) -> None:
    for change in (registry.withdraw, registry.restore):
        with pytest.raises(
            NotSupported, match=r"'flux:a' is an adapter of 'flux': .*/admin/loras/a"
        ):
            change("flux:a")
    registry.withdraw("art")
    assert registry.find("flux:a")


def test_the_document_of_a_key_for_an_adapter_has_its_routes_alone(registry: Registry) -> None:
    names = registry.names_for(call("flux:a"))
    document: Any = openapi_document(names, has_urls=False)
    assert "/v2/models/flux%3Aa/infer" in document["paths"]
    assert "/v2/models/flux/infer" not in document["paths"]
    body = document["components"]["schemas"]["flux_images"]
    assert body["properties"]["model"]["enum"] == ["flux:a"]
    whole: Any = openapi_document(registry.names_for(call()), has_urls=False)
    assert [p for p in whole["paths"] if re.fullmatch("/v2/models/[^/]+/infer", p)] == [
        "/v2/models/flux/infer", "/v2/models/plain/infer", "/v2/models/x%3Ay/infer",
    ]  # fmt: skip


# -- over OpenAI's routes --------------------------------------------------------------------------
async def test_models_lists_adapters_with_their_parent() -> None:
    app = application(Adapted("flux", "a"))
    listed = (await Wire("GET", "/v1/models").run(app)).json
    assert [(card["id"], card.get("parent")) for card in listed["data"]] == [
        ("flux", None), ("flux:a", "flux"),
    ]  # fmt: skip
    assert "parent" not in listed["data"][0]
    assert listed["models"] == ["flux", "flux:a"]
    one = await Wire("GET", "/v1/models/flux:a").run(app)
    assert (one.status, one.json["parent"], one.json["ready"]) == (200, "flux", True)
    missing = await Wire("GET", "/v1/models/flux:b").run(app)
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")


async def test_a_model_with_an_adapter_draws_and_an_unknown_one_is_a_404() -> None:
    painter = Adapted("flux", "a")
    app = application(painter)
    wire = await post(IMAGES, {"model": "flux:a", "prompt": "x"}).run(app)
    assert wire.status == 200
    assert painter.calls[0].adapters == AdapterAccess("a")
    wire = await post(IMAGES, {"model": "flux:b", "prompt": "x"}).run(app)
    assert (wire.status, wire.error["code"]) == (404, "model_not_found")
    assert wire.error["message"] == "model 'flux' has no adapter 'b'; served: a"


def test_two_models_may_not_share_a_name_with_an_adapter() -> None:
    registry = Registry([Adapted("flux", "y"), Painter("flux:y")], Settings())
    asking = call()
    assert registry.find("flux:y", call=asking).name == "flux:y"  # a model's own name comes first
    assert asking.adapters is ANY_ADAPTER
    with pytest.raises(InvalidRequest):
        registry.add(Painter("flux:y"))


def test_a_key_with_a_list_has_the_models_of_its_names(registry: Registry) -> None:
    def able(*models: str) -> set[str]:
        return {each.name for each in registry.models_for(call(*models))}

    assert able() == {"flux", "plain", "x:y"}
    assert able("plain") == {"plain"}
    assert able("art", "gone", "flux:gone", "plain:a") == {"flux"}
    assert able("art:b", "x:y:a") == {"flux", "x:y"}
    for models in ((), ("plain",), ("art:b", "plain:a"), ("x:y:a", "flux", "x")):
        assert able(*models) == {x.name for x in registry.names_for(call(*models)).values()}
