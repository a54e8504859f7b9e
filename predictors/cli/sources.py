"""Where `draw` and `ask` get their answers: a server, or a model in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Protocol

from predictors.cli.endpoint import RemoteServer, events_of
from predictors.cli.models import CHAT, IMAGES, WORDS, choose_model, is_ours, listed_models
from predictors.cli.outcomes import REFUSED, VerbFailed


class AnswerSource(Protocol):
    """Answers OpenAI bodies. For one thread."""

    @property
    def is_ours(self) -> bool:
        """True if it takes our own fields."""

    def choose(self, kind: str, name: str | None) -> str:
        """The model to ask. Raises `VerbFailed` if there is none of this kind."""

    def answers(self, route: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of the answer, or the one object that it is."""


class ServerSource:
    """Asks a server."""

    def __init__(self, endpoint: RemoteServer) -> None:
        self._endpoint = endpoint

    @cached_property
    def is_ours(self) -> bool:
        return is_ours(self._endpoint)

    def choose(self, kind: str, name: str | None) -> str:
        if name:
            return name
        models = listed_models(self._endpoint, ours=self.is_ours)
        return choose_model(models, kind, name).name

    def answers(self, route: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        return self._endpoint.answers(route, body)


class OwnModel(Protocol):
    """A warm model of this process."""

    name: str
    draws: bool

    def stream(self, route: str, body: bytes) -> Iterator[bytes]:
        """The server-sent events of the answer. Raises `ServingError`."""


class OwnSource:
    """Asks a model in this process, without a port."""

    is_ours = True

    def __init__(self, model: OwnModel) -> None:
        self._model = model

    def choose(self, kind: str, name: str | None) -> str:
        if (IMAGES if self._model.draws else CHAT) != kind:
            raise VerbFailed(f"the model in this folder is none that {WORDS[kind]}", REFUSED)
        return self._model.name

    def answers(self, route: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        return events_of(self._model.stream(route, json.dumps(body).encode()))
