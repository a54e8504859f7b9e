"""All OpenAI routes: those that write text, those that draw, and the models that KServe V1 lists
too."""

from __future__ import annotations

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.responses import Response
from predictors.protocol.openai.image_routes import edits_operation, images_operation
from predictors.protocol.openai.listing import Listing
from predictors.protocol.openai.operations import endpoint
from predictors.protocol.openai.picture_files import ROUTE as FILES_ROUTE
from predictors.protocol.openai.picture_files import PictureFiles, file_response
from predictors.protocol.openai.text_routes import CHAT
from predictors.protocol.registry import Registry

PREFIXES = ("/openai/v1", "/v1")


def openai_routes(registry: Registry) -> list[BaseRoute]:
    listing = Listing(registry)
    files = PictureFiles(registry.settings.server)
    operations = (CHAT, images_operation(files), edits_operation(files))
    endpoints = [(each.route, endpoint(registry, each, operations)) for each in operations]

    async def file(request: Request) -> Response:
        return file_response(files.get(request.path_params["file"]))

    routes: list[BaseRoute] = []
    for prefix in PREFIXES:
        routes += [Route(prefix + route, answer, methods=["POST"]) for route, answer in endpoints]
        routes += [
            Route(f"{prefix}{FILES_ROUTE}/{{file}}", PlainEndpoint(file), methods=["GET"]),
            Route(f"{prefix}/models", PlainEndpoint(listing.all), methods=["GET"]),
            Route(f"{prefix}/models/{{name:model}}", PlainEndpoint(listing.one), methods=["GET"]),
        ]
    return routes
