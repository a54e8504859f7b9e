"""Finds the model that a verb asks: what a server lists, and what each model takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from predictors.cli.endpoint import OUR_NAME, RemoteServer, plain
from predictors.cli.outcomes import FAILED, REFUSED, VerbFailed

IMAGES, CHAT = "images", "chat"
WORDS = {IMAGES: "draws pictures", CHAT: "answers questions about pictures"}
MAX_MODELS = 256


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model of a server. `kind` is `images`, `chat`, or empty where the server does not say."""

    name: str
    kind: str = ""
    limits: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()


def is_ours(endpoint: RemoteServer) -> bool:
    return endpoint.find("/v2").get("name") == OUR_NAME


def listed_models(endpoint: RemoteServer, *, ours: bool) -> list[ListedModel]:
    """The models that a server lists, without those that are another one with an adapter."""
    data = endpoint.get("/v1/models").get("data")
    cards = [card for card in data if isinstance(card, dict)] if isinstance(data, list) else []
    names = [card["id"] for card in cards if isinstance(card.get("id"), str)]
    if not ours:
        return [ListedModel(name) for name in names[:MAX_MODELS]]
    adapted = {card.get("id") for card in cards if card.get("parent")}
    return [described_model(endpoint, name) for name in names[:MAX_MODELS] if name not in adapted]


def described_model(endpoint: RemoteServer, name: str) -> ListedModel:
    """A model of our own server, with the kind that its outputs say."""
    metadata = endpoint.find(f"/v2/models/{quote(name, safe='')}")
    outputs, inputs = names_of(metadata, "outputs"), names_of(metadata, "inputs")
    kind = IMAGES if "image" in outputs else CHAT if "text" in outputs else ""
    limits = metadata.get("limits")
    return ListedModel(name, kind, limits if isinstance(limits, dict) else {}, inputs)


def names_of(metadata: Mapping[str, Any], what: str) -> tuple[str, ...]:
    found = metadata.get(what)
    rows = found if isinstance(found, list) else []
    return tuple(str(row.get("name")) for row in rows if isinstance(row, dict))


def choose_model(models: list[ListedModel], kind: str, name: str | None) -> ListedModel:
    """The model `name`, or the first that does what `kind` says. Raises `VerbFailed`."""
    if name:
        known = {model.name: model for model in models}
        return known.get(name, ListedModel(name))  # the server says what it thinks of the name
    able = [model for model in models if model.kind == kind]
    unsaid = [model for model in models if not model.kind]
    if able:
        return able[0]
    if len(unsaid) == 1:
        return unsaid[0]
    names = plain(", ".join(model.name for model in models))[:500]
    if unsaid:
        raise VerbFailed(f"the server has several models: {names}; choose with --name", REFUSED)
    raise VerbFailed(f"no model there {WORDS[kind]}; it serves {names or 'none'}", FAILED)
