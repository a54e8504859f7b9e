"""The requests of a load: read from a file, or made of the command line's flags."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from predictors.cli.asking import data_url, picture_messages
from predictors.cli.models import CHAT, IMAGES, ListedModel, choose_model
from predictors.cli.outcomes import REFUSED, VerbFailed

V2 = "v2"
KINDS = (CHAT, IMAGES, V2)
KEYS = {"name", "weight", "kind", "model", "prompt", "prompts", "picture", "body"}
MAX_FILE_BYTES = 16 * 2**20
MAX_ENTRIES, MAX_PROMPTS = 256, 10_000
PROMPTS = ("a red circle on a white background", "a small blue square above a green star")
QUESTION = "Describe this picture."


@dataclass(frozen=True, slots=True)
class MixEntry:
    """One kind of request of a mix. Without `model` the server's first of this kind is asked."""

    name: str
    kind: str
    weight: float = 1.0
    model: str = ""
    prompts: tuple[str, ...] = ()
    picture: str = ""
    """A data URL."""
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request as it is sent."""

    name: str
    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Mix:
    """Requests for one server, drawn by weight."""

    weights: tuple[float, ...]
    choices: tuple[tuple[LoadRequest, ...], ...]

    def draw(self, rng: random.Random) -> LoadRequest:
        return rng.choice(rng.choices(self.choices, self.weights)[0])

    def first_of_each(self) -> list[LoadRequest]:
        return [requests[0] for requests in self.choices]


def read_mix(path: Path) -> list[MixEntry]:
    """The entries of a file in JSON or YAML. Raises `VerbFailed` that names what is wrong."""
    import yaml

    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise VerbFailed(f"{str(path)!r} can't be read: {error.strerror}", REFUSED) from error
    if len(content) > MAX_FILE_BYTES:
        raise VerbFailed(f"{path.name} has more than {MAX_FILE_BYTES // 2**20} MiB", REFUSED)
    try:
        found = json.loads(content) if path.suffix == ".json" else yaml.safe_load(content)
    except (ValueError, yaml.YAMLError, RecursionError):
        raise VerbFailed(f"{path.name} is neither JSON nor YAML", REFUSED) from None
    rows = found.get("requests") if isinstance(found, dict) else found
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_ENTRIES:
        raise VerbFailed(f"{path.name} needs a list `requests` of 1 to {MAX_ENTRIES}", REFUSED)
    return [read_entry(row, f"requests[{i}]", path.parent) for i, row in enumerate(rows)]


def read_entry(row: object, where: str, folder: Path) -> MixEntry:
    """One entry; a picture's path is seen from `folder`."""
    if not isinstance(row, dict):
        raise VerbFailed(f"{where} is no object", REFUSED)
    if unknown := [str(key)[:100] for key in row if key not in KEYS]:
        raise VerbFailed(
            f"{where} has {unknown[0]!r}; known are {', '.join(sorted(KEYS))}", REFUSED
        )
    kind, weight = row.get("kind", CHAT), row.get("weight", 1)
    if kind not in KINDS:
        raise VerbFailed(f"{where}.kind is one of {', '.join(KINDS)}", REFUSED)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise VerbFailed(f"{where}.weight is a number above 0", REFUSED)
    body, prompts = row.get("body", {}), row.get("prompts", row.get("prompt", ()))
    prompts = [prompts] if isinstance(prompts, str) else list(prompts or ())
    texts = {name: row.get(name, "") for name in ("name", "model", "picture")}
    if not all(isinstance(text, str) for text in [*prompts, *texts.values()]):
        raise VerbFailed(f"{where}: prompts, name, model and picture are text", REFUSED)
    if not isinstance(body, dict) or len(prompts) > MAX_PROMPTS:
        raise VerbFailed(f"{where}: body is an object, prompts are at most {MAX_PROMPTS}", REFUSED)
    if not prompts and not {"messages", "prompt", "inputs"} & body.keys():
        raise VerbFailed(f"{where} needs a prompt, or a body with messages or inputs", REFUSED)
    picture = data_url(folder / texts["picture"]) if texts["picture"] else ""
    name = texts["name"] or kind
    return MixEntry(name, kind, float(weight), texts["model"], tuple(prompts), picture, body)


def default_entries(kind: str, prompts: Sequence[str], picture: str, body: Any) -> list[MixEntry]:
    """The one kind of request that flags describe."""
    default = (QUESTION,) if kind == CHAT else PROMPTS
    body = {"parameters": body} if kind == V2 and body else body
    return [MixEntry(kind, kind, prompts=tuple(prompts) or default, picture=picture, body=body)]


def mix_for(entries: Sequence[MixEntry], models: list[ListedModel], name: str | None) -> Mix:
    """The requests of `entries` for a server with these models."""
    made = []
    for entry in entries:
        kind = models[0].kind if entry.kind == V2 and models else entry.kind
        model = entry.model or name or choose_model(models, kind, None).name
        made.append(tuple(load_requests(entry, model)))
    return Mix(tuple(entry.weight for entry in entries), tuple(made))


def load_requests(entry: MixEntry, model: str) -> list[LoadRequest]:
    bodies = [body_of(entry, prompt) for prompt in entry.prompts] or [dict(entry.body)]
    if entry.kind == V2:
        path = f"/v2/models/{quote(model, safe='')}/infer"
    else:
        route = "chat/completions" if entry.kind == CHAT else "images/generations"
        path = f"/v1/{route}"
        bodies = [{"model": model, **streamed(entry), **body} for body in bodies]
    return [LoadRequest(entry.name, path, json.dumps(body).encode()) for body in bodies]


def streamed(entry: MixEntry) -> dict[str, Any]:
    """A chat is streamed, so that its tokens can be timed, unless its body says otherwise."""
    if entry.kind != CHAT or entry.body.get("stream") is False:
        return {}
    return {"stream": True, "stream_options": {"include_usage": True}}


def body_of(entry: MixEntry, prompt: str) -> dict[str, Any]:
    if entry.kind == IMAGES:
        return {"prompt": prompt, "response_format": "b64_json", **entry.body}
    if entry.kind == CHAT:
        plain_messages = [{"role": "user", "content": prompt}]
        picture = entry.picture
        messages = picture_messages(picture, prompt) if picture else plain_messages
        return {"messages": messages, **entry.body}
    inputs = [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [prompt]}]
    if entry.picture:
        data = [entry.picture.partition(",")[2]]
        inputs.append({"name": "image", "datatype": "BYTES", "shape": [1], "data": data})
    return {"inputs": inputs, **entry.body}
