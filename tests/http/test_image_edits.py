"""`POST /v1/images/edits` of the real server: forms as clients write them, their limits, hostile
ones."""

from __future__ import annotations

import base64
import gzip
import json
import socket
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import aiohttp
import httpx
import openai
import pytest

from predictors import metrics
from tests.http.echo import PATIENCE_S, Running, png, serving, small_settings
from tests.http.openai_echo import Artist, Writer, words
from tests.http.test_openai_client import client_of

RED, BLUE = png(), png((0, 0, 255))
URL = "data:image/png;base64," + base64.b64encode(RED).decode()
EDITS = "/v1/images/edits"
GIVEN = {"model": "flux", "prompt": "a red circle"}
MAX_BODY = 4 * 2**20


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    settings = small_settings(
        server={"max_body_bytes": MAX_BODY, "max_bytes_in_flight": MAX_BODY, "workers": 2}
    )
    models = Artist("flux", words(), settings), Writer("qwen-vl", words(), settings)
    with serving(*models, settings=settings) as running:
        yield running


@pytest.fixture
def http(served: Running) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


def files_of(answer: Any) -> list[bytes]:
    return [base64.b64decode(each["b64_json"]) for each in answer["data"]]


# -- clients ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1"])
def test_the_openai_client_edits_one_picture_a_list_and_a_mask(
    served: Running, prefix: str
) -> None:
    with client_of(served, prefix) as client:
        common: Any = {"model": "flux", "prompt": "a fox, in Zürich", "size": "auto", "user": "me"}
        one = client.images.edit(image=RED, **common)
        assert one.data is not None
        assert [base64.b64decode(x.b64_json or "") for x in one.data] == [RED]
        assert one.prompt == common["prompt"]  # type: ignore[attr-defined]
        several = client.images.edit(
            image=[("a.png", RED, "image/png"), BytesIO(BLUE)],
            mask=BLUE,
            n=2,
            quality="high",
            input_fidelity="high",
            response_format="b64_json",
            extra_body={"strength": 0.25, "seed": 7, "tier": "turbo", "num_inference_steps": 4},
            **common,
        )
        assert several.data is not None
        assert [base64.b64decode(x.b64_json or "") for x in several.data] == [RED, BLUE, BLUE]
        assert several.strength == 0.25  # type: ignore[attr-defined]


def test_the_openai_client_reads_a_refusal_of_a_form(served: Running) -> None:
    with client_of(served) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.edit(model="flux", prompt="a", image=RED, extra_body={"strenght": 1})
        assert caught.value.param == "strenght"
        with pytest.raises(openai.BadRequestError, match="/images/edits serves flux"):
            client.images.edit(model="qwen-vl", prompt="a", image=RED)
        with pytest.raises(openai.NotFoundError):
            client.images.edit(model="none", prompt="a", image=RED)


@pytest.mark.parametrize("name", ["image", "image[]"])
async def test_open_webui_s_call_works(served: Running, name: str) -> None:
    # backend/open_webui/routers/images.py, image_edits with the engine "openai"
    form = aiohttp.FormData()
    sent = {
        "model": "flux",
        "prompt": "a fox",
        "n": 1,
        "size": "64x64",
        "response_format": "b64_json",
    }
    for key, value in sent.items():
        form.add_field(key, str(value))
    count = 2 if name == "image[]" else 1
    for _ in range(count):
        form.add_field(name, BytesIO(RED), filename="a1.png", content_type="image/png")
    headers = {"Authorization": "Bearer none"}
    address = f"{served.url}{EDITS}?api-version=1"
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(address, data=form) as reply,
    ):
        assert reply.status == 200
        assert files_of(await reply.json(content_type=None)) == [RED] * count


def test_a_form_in_chunks_and_compressed_is_read(http: httpx.Client) -> None:
    request = httpx.Request("POST", "http://x", data=GIVEN, files={"image": RED})
    raw, content_type = request.read(), request.headers["content-type"]
    pieces = (raw[at : at + 7] for at in range(0, len(raw), 7))
    reply = http.post(EDITS, content=pieces, headers={"content-type": content_type})
    assert files_of(reply.json()) == [RED]
    heads = {"content-type": content_type, "content-encoding": "gzip"}
    reply = http.post(EDITS, content=gzip.compress(raw), headers=heads)
    assert files_of(reply.json()) == [RED]


def test_json_with_data_urls_is_read(http: httpx.Client) -> None:
    body = GIVEN | {"images": [{"image_url": URL}], "mask": {"image_url": URL}, "strength": 0.5}
    assert files_of(http.post(EDITS, json=body).json()) == [RED, RED]


@pytest.mark.parametrize("size", [100_000, 2_000_000])
def test_large_forms_are_read_by_threads_and_worker_processes(
    http: httpx.Client, served: Running, size: int
) -> None:
    picture = (RED + bytes(range(256)) * (size // 256))[:size]
    reply = http.post(EDITS, data=GIVEN, files=[("image", picture), ("mask", RED)])
    assert reply.status_code == 200, reply.text
    assert files_of(reply.json()) == [picture, RED]
    served.wait_idle()
    assert metrics.request_bytes_in_flight._value.get() == 0


# -- limits ----------------------------------------------------------------------------------------
def test_a_form_beyond_the_limit_of_bytes_is_413(http: httpx.Client) -> None:
    reply = http.post(EDITS, data=GIVEN, files={"image": bytes(MAX_BODY)})
    assert reply.status_code == 413
    assert str(MAX_BODY) in reply.json()["error"]["message"]


def test_forms_count_as_bytes_in_flight() -> None:
    settings = small_settings(server={"max_bytes_in_flight": 300_000})
    model = Artist("flux", words(), settings)
    with serving(model, settings=settings) as running, running.client() as http:
        running.server.registry.bytes_in_flight.add(200_000)
        reply = http.post(EDITS, data=GIVEN, files={"image": bytes(200_000)})
        running.server.registry.bytes_in_flight.remove(200_000)
    assert reply.status_code == 503
    assert "at most 300000" in reply.json()["error"]["message"]


def raw_post(served: Running, body: bytes, *heads: str) -> tuple[int, dict[str, Any]]:
    """The status and the body of the answer to exactly these bytes."""
    lines = [f"POST {EDITS} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *heads, "", ""]
    address = ("127.0.0.1", served.server.http_port)
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        connection.sendall("\r\n".join(lines).encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, text = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(text)


TYPE = "Content-Type: multipart/form-data; boundary=b"
WHOLE = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nflux\r\n'
    b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n'
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + RED + b"\r\n"
    b"--b--\r\n"
)


def test_the_raw_form_of_these_tests_is_right(served: Running) -> None:
    status, answer = raw_post(served, WHOLE, TYPE, f"Content-Length: {len(WHOLE)}")
    assert status == 200
    assert files_of(answer) == [RED]


def changed(old: bytes, new: bytes) -> bytes:
    assert old in WHOLE
    return WHOLE.replace(old, new)


PROMPT, FILE = b'name="prompt"', b'filename="a"'
FORM = "multipart/form-data"
HOSTILE: dict[str, tuple[bytes, int, str]] = {
    f"{FORM}": (WHOLE, 400, "no boundary"),
    "multipart/mixed; boundary=b": (WHOLE, 415, FORM),
    f"{FORM}; boundary=c": (WHOLE, 400, "does not have the boundary"),
    f"{FORM}; boundary=b; a=lf": (changed(b"\r\n", b"\n"), 400, "end with LF"),
    f"{FORM}; boundary=b; a=cut": (WHOLE[:-6], 400, "without its closing boundary"),
    f"{FORM}; boundary=b; a=parts": (b"--b\r\n" * 10**5, 413, "more than 256 parts"),
    f"{FORM}; boundary=b; a=head": (b"--b\r\n" + b"a" * 10**6, 400, "malformed at byte"),
    f"{FORM}; boundary=b; a=twice": (changed(PROMPT, b'name="model"'), 400, "'model' is in the"),
    f"{FORM}; boundary=b; a=unknown": (changed(PROMPT, b'name="promt"'), 400, "'prompt'"),
    f"{FORM}; boundary=b; a=bytes": (changed(b"\r\na\r\n", b"\r\n\xff\r\n"), 400, "not UTF-8"),
    f"{FORM}; boundary=b; a=charset": (
        changed(PROMPT, PROMPT + b"\r\nContent-Type: text/plain; charset=cp1"),
        400,
        "charset 'cp1'",
    ),
    f"{FORM}; boundary=b; a=coding": (
        changed(FILE, FILE + b"\r\nContent-Transfer-Encoding: base64"),
        400,
        "content-transfer-encoding",
    ),
    f"{FORM}; boundary=b; a=number": (changed(PROMPT, b'name="n"'), 400, "n must be a whole"),
}
"""By content type."""


@pytest.mark.parametrize("content_type", HOSTILE)
def test_a_hostile_form_gets_a_status_and_the_reason(served: Running, content_type: str) -> None:
    body, status, reason = HOSTILE[content_type]
    heads = f"Content-Type: {content_type}", f"Content-Length: {len(body)}"
    found, answer = raw_post(served, body, *heads)
    assert (found, reason in answer["error"]["message"]) == (status, True), answer


@pytest.mark.parametrize("missing", [-40, 1])
def test_a_wrong_content_length_cuts_the_form_or_ends_the_connection(
    served: Running, missing: int
) -> None:
    length = len(WHOLE) + missing
    address = ("127.0.0.1", served.server.http_port)
    head = f"POST {EDITS} HTTP/1.1\r\nHost: 127.0.0.1\r\n{TYPE}\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        connection.sendall(head.encode() + WHOLE)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 200 " not in answer
    served.wait_idle()
