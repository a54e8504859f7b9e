"""The verb `smoke`: a few requests that say whether a deployment is well."""

from __future__ import annotations

import argparse
import base64
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from typing import Any
from urllib.parse import quote

import httpx
from PIL import Image, ImageDraw

from predictors.cli.asking import ROUTE as CHAT_ROUTE
from predictors.cli.asking import choice_texts, picture_messages
from predictors.cli.drawing import ROUTE as IMAGES_ROUTE
from predictors.cli.drawing import picture_of
from predictors.cli.endpoint import KEY_VARIABLE, RemoteServer, plain, shown_address
from predictors.cli.models import CHAT, IMAGES, ListedModel, is_ours, listed_models
from predictors.cli.outcomes import DONE, FAILED, NO_SERVER, VerbFailed, print_json

SCENE = "a large red circle to the left of a small blue square on a white background"
QUESTION = "Describe this picture."
EMBEDDED_VOCABULARY, EMBEDDED_SIZE = 4096, "128x128"
"""The embedded checkpoints have fewer tokens, and draw this size; the known answers are theirs."""
SEED = 7


@dataclass(slots=True)
class SmokeCheck:
    """One line of the table. `ok` is None for what the server does not offer."""

    name: str
    ok: bool | None = None
    ms: float = 0.0
    detail: str = ""


@dataclass
class SmokeTest:
    """The checks of one server, in order."""

    server: RemoteServer
    checks: list[SmokeCheck] = field(default_factory=list)
    models: list[ListedModel] = field(default_factory=list)
    ours: bool = False

    def check(self, name: str, run: Callable[[], str]) -> bool:
        """Run one check: its text is the detail. A server that is gone ends them all."""
        began = time.monotonic()
        try:
            ok, detail = True, run()
        except VerbFailed as failure:
            if failure.exit_code == NO_SERVER and not self.checks:
                raise
            ok, detail = False, failure.message
        ms = round(1000 * (time.monotonic() - began), 1)
        self.checks.append(SmokeCheck(name, ok, ms, detail))
        return ok

    def skip(self, name: str, why: str) -> None:
        self.checks.append(SmokeCheck(name, None, 0.0, why))

    # -- the checks ------------------------------------------------------------------------------
    def health(self) -> str:
        self.ours = is_ours(self.server)
        if not self.ours:
            return f"a server of others: {self.server.status_of('/health')} at /health"
        for path in ("/v2/health/live", "/v2/health/ready"):
            if (status := self.server.status_of(path)) != 200:
                raise VerbFailed(f"{path} is answered with {status}", FAILED, status=status)
        return "live and ready"

    def list_models(self) -> str:
        self.models = listed_models(self.server, ours=self.ours)
        if not self.models:
            raise VerbFailed("the server lists no model", FAILED)
        return plain(", ".join(model.name for model in self.models))[:200]

    def v2(self, model: ListedModel) -> str:
        body = {"inputs": rest_inputs(row_for(model)), "parameters": short(model)}
        path = f"/v2/models/{quote(model.name, safe='')}/infer"
        outputs = next(self.server.answers(path, body)).get("outputs")
        names = [str(each.get("name")) for each in outputs or [] if isinstance(each, Mapping)]
        return expected(model, names)

    def grpc(self, model: ListedModel, target: str, key: str, timeout_s: float) -> str:
        from predictors.cli.grpc_infer import grpc_infer

        secure = self.server.url.startswith("https:")
        names = grpc_infer(
            target, model.name, row_for(model), short(model),
            key=key, timeout_s=timeout_s, is_secure=secure,
        )  # fmt: skip
        return expected(model, names)

    def chat(self, model: ListedModel) -> str:
        url = f"data:image/png;base64,{base64.b64encode(scene()).decode()}"
        body = {"model": model.name, "messages": picture_messages(url, QUESTION)}
        stream = {"stream": True, "temperature": 0, "max_tokens": 32}
        events = self.server.answers(CHAT_ROUTE, {**body, **stream})
        words = "".join(text for event in events for text, _ in choice_texts(event))
        if not words:
            raise VerbFailed("the answer has no words", FAILED)
        if model.limits.get("vocabulary_size", EMBEDDED_VOCABULARY) < EMBEDDED_VOCABULARY:
            missing = [word for word in ("red circle", "blue") if word not in words]
            if missing:
                raise VerbFailed(f"known answer: no {missing[0]!r} in {plain(words)!r}", FAILED)
            return f"known answer: {plain(words)}"
        return plain(words)[:80]

    def images(self, model: ListedModel) -> str:
        is_known = model.limits.get("default_size") == EMBEDDED_SIZE
        steps = {"num_inference_steps": 8 if is_known else 1, "seed": SEED} if self.ours else {}
        body = {"model": model.name, "prompt": SCENE, "response_format": "b64_json", **steps}
        *_, answer = self.server.answers(IMAGES_ROUTE, body)
        size, places = look_at(picture_of(answer))
        if not is_known:
            return f"a picture of {size}"
        if not places["red"] or not places["blue"] or places["red"] > places["blue"]:
            raise VerbFailed("known answer: no red circle to the left of a blue square", FAILED)
        return f"known answer: red to the left of blue, {size}"


def run_smoke(arguments: argparse.Namespace) -> int:
    """Run every check and print the table; returns the exit code."""
    key = arguments.key or arguments.environ.get(KEY_VARIABLE, "")
    with RemoteServer(arguments.url, key, arguments.timeout) as server:
        test = SmokeTest(server)
        run_checks(test, arguments.grpc_port, key, arguments.timeout)
        ok = all(check.ok is not False for check in test.checks)
        if arguments.json:
            rows = [asdict(check) for check in test.checks]
            print_json({"url": shown_address(server.url), "ok": ok, "checks": rows})
        else:
            sys.stdout.writelines(f"{line}\n" for line in smoke_lines(test.checks))
    return DONE if ok else FAILED


def run_checks(test: SmokeTest, grpc_port: int | None, key: str, timeout_s: float) -> None:
    test.check("health", test.health)
    if not test.check("models", test.list_models):
        return
    target = f"{httpx.URL(test.server.url).host}:{grpc_port}"
    for model in test.models if test.ours else []:
        test.check(f"V2 REST {model.name}", partial(test.v2, model))
        if grpc_port is not None:
            test.check(f"gRPC {model.name}", partial(test.grpc, model, target, key, timeout_s))
    if not test.ours:
        test.skip("V2 REST", "not a server of this kind")
    if grpc_port is None:
        test.skip("gRPC", "no --grpc-port")
    for kind, name, run_kind in ((CHAT, "chat", test.chat), (IMAGES, "images", test.images)):
        able = [model for model in test.models if model.kind == kind]
        unsaid = [model for model in test.models if not model.kind][:1] if kind == CHAT else []
        for model in able or unsaid:
            test.check(f"OpenAI {name} {model.name}", partial(run_kind, model))
        if not able and not unsaid:
            test.skip(f"OpenAI {name}", "no model is listed for it")


def row_for(model: ListedModel) -> dict[str, bytes]:
    """One row of V2 inputs."""
    if model.kind == CHAT:
        return {"prompt": QUESTION.encode(), "image": scene()}
    return {"prompt": SCENE.encode()}


def rest_inputs(row: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """The same as JSON: text as it is, files as base64."""
    texts = {
        name: base64.b64encode(value).decode() if name == "image" else value.decode()
        for name, value in row.items()
    }
    shape = {"datatype": "BYTES", "shape": [1]}
    return [{"name": name, **shape, "data": [text]} for name, text in texts.items()]


def short(model: ListedModel) -> dict[str, int]:
    """Parameters of a short request."""
    return {"max_tokens": 8} if model.kind == CHAT else {"num_inference_steps": 1, "seed": SEED}


def expected(model: ListedModel, outputs: Sequence[str]) -> str:
    wanted = "text" if model.kind == CHAT else "image"
    if model.kind and wanted not in outputs:
        raise VerbFailed(f"the answer has no output {wanted!r}", FAILED)
    return f"outputs {plain(', '.join(outputs))[:100]}"


def scene() -> bytes:
    """The picture that is described: a PNG of `SCENE`."""
    picture = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((10, 34, 70, 94), fill=(220, 30, 30))
    draw.rectangle((88, 52, 112, 76), fill=(30, 60, 220))
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def look_at(file: bytes) -> tuple[str, dict[str, float]]:
    """The size of a picture, and the mean column of its red and of its blue pixels, 0 without."""
    try:
        with Image.open(BytesIO(file)) as opened:
            picture = opened.convert("RGB").resize((64, 64))
            size = f"{opened.width}x{opened.height}"
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise VerbFailed("what was drawn is no picture", FAILED) from error
    raw = picture.tobytes()
    columns: dict[str, list[int]] = {"red": [], "blue": []}
    for i in range(64 * 64):
        red, green, blue = raw[3 * i : 3 * i + 3]
        if max(red, blue) > 120 and min(red, blue) < 110 and green < 110:
            columns["red" if red > blue else "blue"].append(i % 64 + 1)
    return size, {name: sum(at) / len(at) if at else 0.0 for name, at in columns.items()}


def smoke_lines(checks: Sequence[SmokeCheck]) -> Iterator[str]:
    width = max(len(plain(check.name)) for check in checks)
    for check in checks:
        word = {True: "ok", False: "FAILED", None: "-"}[check.ok]
        ms = f"{check.ms:.1f} ms" if check.ok is not None else ""
        yield f"{plain(check.name):<{width}}  {word:<6}  {ms:>12}  {check.detail}".rstrip()
