"""Readiness and metadata of a model that is ready before all of its shapes are warm."""

from __future__ import annotations

from predictors.protocol.http.app import RestApp
from predictors.protocol.registry import Registry
from predictors.protocol.v2.rest import v2_routes
from predictors.settings import Settings
from tests.protocol.openai.doubles import Chatter, Painter, Wire

READY, METADATA = "/v2/models/flux/ready", "/v2/models/flux"


class Warming(Painter):
    """Is ready with so many shapes warm, of so many."""

    warming: tuple[int, int] | None = (3, 8)


async def answers(app: RestApp, path: str) -> dict[str, object]:
    wire = await Wire("GET", path).run(app)
    assert wire.status == 200
    found: dict[str, object] = wire.json
    return found


async def test_a_model_that_is_still_warming_says_how_far_it_is() -> None:
    painter = Warming()
    registry = Registry([painter, Chatter()], Settings())
    app = RestApp(v2_routes(registry), access_log=True)
    assert await answers(app, READY) == {"name": "flux", "ready": True, "warming": "3/8"}
    assert (await answers(app, METADATA))["warming"] == "3/8"
    assert await answers(app, "/v2/health/ready") == {"ready": True, "warming": "3/8"}
    painter.warming = None
    assert await answers(app, READY) == {"name": "flux", "ready": True}
    assert "warming" not in await answers(app, METADATA)
    assert await answers(app, "/v2/health/ready") == {"ready": True}


async def test_the_servers_readiness_adds_up_its_models() -> None:
    registry = Registry([Warming(), Warming("other")], Settings())
    app = RestApp(v2_routes(registry), access_log=True)
    assert await answers(app, "/v2/health/ready") == {"ready": True, "warming": "6/16"}
