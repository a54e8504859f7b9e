"""All OpenAI routes: those that write text, those that draw, and the models that KServe V1 lists
too. vLLM's for tokens are among them, also without the prefix, as vLLM has them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from predictors.protocol.http.app import PlainEndpoint
from predictors.protocol.http.responses import Response
from predictors.protocol.openai.image_routes import edits_operation, images_operation
from predictors.protocol.openai.listing import Listing
from predictors.protocol.openai.operations import post_routes
from predictors.protocol.openai.picture_files import ROUTE as FILES_ROUTE
from predictors.protocol.openai.picture_files import PictureFiles, file_response
from predictors.protocol.openai.text_routes import (
    CHAT,
    COMPLETIONS,
    KEPT_RESPONSES,
    RESPONSES,
    no_kept_response,
)
from predictors.protocol.openai.token_routes import DETOKENIZE, TOKENIZE
from predictors.protocol.registry import Registry

PREFIXES = ("/openai/v1", "/v1")


def openai_routes(registry: Registry) -> list[BaseRoute]:
    listing = Listing(registry)
    files = PictureFiles(registry.settings.server)
    operations = (CHAT, RESPONSES, COMPLETIONS, images_operation(files), edits_operation(files))

    async def file(request: Request) -> Response:
        return file_response(files.get(request.path_params["file"]))

    routes: list[BaseRoute] = [
        *post_routes(registry, operations, PREFIXES),
        *post_routes(registry, (TOKENIZE, DETOKENIZE), ("", *PREFIXES)),
    ]
    for prefix in PREFIXES:
        routes += [
            Route(prefix + route, PlainEndpoint(no_kept_response), methods=methods)
            for route, methods in KEPT_RESPONSES
        ]
        routes += [
            Route(f"{prefix}{FILES_ROUTE}/{{file}}", PlainEndpoint(file), methods=["GET"]),
            Route(f"{prefix}/models", PlainEndpoint(listing.all), methods=["GET"]),
            Route(f"{prefix}/models/{{name:model}}", PlainEndpoint(listing.one), methods=["GET"]),
        ]
    return routes
