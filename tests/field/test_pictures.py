"""Pictures as people send them, over REST, gRPC and OpenAI chat, to the embedded checkpoint."""

from __future__ import annotations

import base64
import importlib.util
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import pytest
from PIL import Image, ImageDraw

from predictors.__main__ import build
from predictors.protocol.kserve_sdk import pb, pb_grpc
from predictors.protocol.tasks import make_workers
from predictors.settings import ImageLimits, QwenVLSettings, Settings
from tests.http.echo import CALM, PATIENCE_S, Running, png, serving, small_settings
from tests.http.pictures import chunk
from tests.protocol.images import stored_files
from tests.protocol.images.test_decode import saved

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "shapes-qwen-vl"
SETTINGS = Settings(
    server=small_settings(server={"max_body_bytes": 8 * 2**20}).server,
    overload=CALM,
    images=ImageLimits(max_pixels=4_000_000, max_images=4, max_aspect=300.0),
    qwen_vl=QwenVLSettings(slots=2, max_context=512),
)
GOOD = png(size=(64, 64))
SCENE = Image.new("RGB", (112, 112), (255, 255, 255))
ImageDraw.Draw(SCENE).ellipse((20, 20, 90, 90), fill=(220, 20, 20))
DAMAGED = GOOD[:60]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A ready server with the model `qwen-vl`, its pictures decoded by worker processes."""
    workers = make_workers(SETTINGS.server)
    model = build("qwen-vl", CHECKPOINT, SETTINGS, workers)
    with closing(workers), serving(model, settings=SETTINGS, workers=workers) as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as client:
        yield client


@pytest.fixture(scope="module")
def stub(running: Running) -> Iterator[Any]:
    with grpc.insecure_channel(running.grpc_target) as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def base64_of(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def data_url(raw: bytes) -> str:
    return f"data:image/png;base64,{base64_of(raw)}"


def chat(client: httpx.Client, *urls: str, **more: Any) -> httpx.Response:
    """Ask about the pictures at `urls`, in the second message after a first one of text."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    turns = [
        {"role": "system", "content": "Answer shortly."},
        {
            "role": "user",
            "content": [*parts, {"type": "text", "text": "What colour is the circle?"}],
        },
    ]
    body = {"model": "qwen-vl", "messages": turns, "max_tokens": 2, "temperature": 0, **more}
    return client.post("/v1/chat/completions", json=body)


def infer(client: httpx.Client, *texts: str) -> httpx.Response:
    """A V2 request in JSON with a row for each picture, given as text."""
    columns = {"prompt": ["What colour is the circle?"] * len(texts), "image": list(texts)}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [len(texts)], "data": data}
        for name, data in columns.items()
    ]
    return client.post(
        "/v2/models/qwen-vl/infer", json={"inputs": inputs, "parameters": {"max_tokens": 2}}
    )


def infer_grpc(stub: Any, *files: bytes) -> Any:
    """A V2 request over gRPC with a row for each file."""
    request = pb.ModelInferRequest(model_name="qwen-vl")
    request.parameters["max_tokens"].int64_param = 2
    for name, rows in (("prompt", [b"What colour is the circle?"] * len(files)), ("image", files)):
        entry = request.inputs.add(name=name, datatype="BYTES", shape=[len(files)])
        entry.contents.bytes_contents.extend(rows)
    return stub.ModelInfer(request, timeout=PATIENCE_S)


def refused(reply: httpx.Response, status: int = 400) -> tuple[str, str]:
    """The message and `param` of an OpenAI error."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    return error["message"], error["param"]


# -- errors name their picture ---------------------------------------------------------------------
def test_a_chat_error_names_the_picture_that_can_t_be_read(client: httpx.Client) -> None:
    where = "messages[1].content[1].image_url"
    for n in (1, 2):
        message, param = refused(chat(client, data_url(GOOD), data_url(DAMAGED), n=n))
        assert message == f"{where} is damaged or cut short and can't be decoded"
        assert param == where


def test_a_chat_error_names_the_picture_that_is_too_large_or_too_thin(
    client: httpx.Client,
) -> None:
    where = "messages[1].content[2].image_url"
    for size, words in (((3000, 2000), "6000000 in all"), ((2010, 10), "can't be cut")):
        urls = [data_url(GOOD), data_url(png((0, 99, 0))), data_url(png(size=size))]
        message, param = refused(chat(client, *urls))
        assert message.startswith(where), message
        assert words in message
        assert param == where


def test_a_v2_error_names_the_row_and_the_input(client: httpx.Client, stub: Any) -> None:
    for rows in ([DAMAGED], [GOOD, DAMAGED], [GOOD, GOOD, DAMAGED]):
        expected = f"row {len(rows) - 1}: image is damaged or cut short and can't be decoded"
        reply = infer(client, *map(base64_of, rows))
        assert (reply.status_code, reply.json()["error"]) == (400, expected)
        with pytest.raises(grpc.RpcError) as caught:
            infer_grpc(stub, *rows)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == expected


# -- data URLs and base64 as people write them -----------------------------------------------------
FILE = saved(SCENE)
TEXT = base64_of(FILE)
FORMS = {
    "as documented": f"data:image/png;base64,{TEXT}",
    "no subtype, as Qwen's own page has it": f"data:image;base64,{TEXT}",
    "any subtype": f"data:image/*;base64,{TEXT}",
    "octet-stream": f"data:application/octet-stream;base64,{TEXT}",
    "no type": f"data:;base64,{TEXT}",
    "another type": f"data:image/jpeg;base64,{TEXT}",
    "white space around": f"\n  data:image/png;base64,{TEXT} \n",
    "a space before base64": f"data:image/png; base64,{TEXT}",
    "a charset": f"data:image/png;charset=utf-8;base64,{TEXT}",
    "a name": f"data:image/png;name=x.png;base64,{TEXT}",
    "upper case": f"DATA:IMAGE/PNG;BASE64,{TEXT}",
    "no padding": f"data:image/png;base64,{TEXT.rstrip('=')}",
    "url-safe": f"data:image/png;base64,{base64.urlsafe_b64encode(FILE).decode()}",
    "percent-encoded": f"data:image/png;base64,{quote(TEXT, safe='')}",
    "all signs percent-encoded": "data:image/png;base64,"
    + "".join(f"%{sign:02x}" for sign in TEXT.encode()),
    "line breaks": f"data:image/png;base64,{base64.encodebytes(FILE).decode()}",
    "percent-encoded line breaks": f"data:image/png;base64,{quote(base64.encodebytes(FILE))}",
    "base64 alone": TEXT,
    "base64 alone in lines": base64.encodebytes(FILE).decode(),
    "url-safe base64 alone": base64.urlsafe_b64encode(FILE).decode().rstrip("="),
    "not base64": f"data:image/png,{quote(FILE, safe='')}",
}


def answer(reply: httpx.Response) -> str:
    content: str = reply.raise_for_status().json()["choices"][0]["message"]["content"]
    return content


@pytest.fixture(scope="module")
def expected(client: httpx.Client) -> str:
    """The answer to `SCENE`, which is another than to other pictures."""
    told = answer(chat(client, data_url(FILE), max_tokens=12))
    assert told != answer(chat(client, data_url(png((0, 0, 255), (112, 112))), max_tokens=12))
    return told


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_picture_is_read_however_its_text_is_written(
    client: httpx.Client, expected: str, form: str
) -> None:
    assert answer(chat(client, form, max_tokens=12)) == expected
    assert infer(client, form).status_code == 200


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://example.com/a.png", "is a web address, and this server fetches none"),
        ("file:///etc/passwd", "is not a data URL"),
        ("/etc/passwd", "is not a data URL"),
        ("data:image/png;base64,!!!!", "is a data URL whose base64 is damaged"),
        (
            f"data:application/pdf;base64,{base64_of(b'%PDF-1.7')}",
            "is a data URL of app",
        ),
        (f"data:image/png;base64,{base64_of(b'%PDF-1.7')}", "is a PDF document"),
        ("data:image/svg+xml,<svg/>", "is an SVG drawing"),
        (f"data:;base64,{base64_of(b'<html>404')}", "is an HTML page"),
        ("data:image/png;base64,", "is empty"),
    ],
)
def test_what_is_no_picture_is_named(client: httpx.Client, url: str, words: str) -> None:
    where = "messages[1].content[1].image_url"
    message, param = refused(chat(client, data_url(GOOD), url))
    assert message.startswith(f"{where} {words}"), message
    assert param == where


# -- files -----------------------------------------------------------------------------------------
JPEG = saved(SCENE, "JPEG", quality=98, subsampling=0)
FILES = {
    "motion photo": JPEG + b"\xff\xda" * 101,
    "film behind it": JPEG + b"\0\0\0\x18ftypmp42" + b"\xff\xda\xff\xd9" * 5000,
    "large compressed text": FILE[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21)))
    + FILE[33:],
    "large profile": FILE[:33] + chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**21))) + FILE[33:],
    "still GIF": saved(SCENE.quantize(64), "GIF"),
    "BMP": saved(SCENE, "BMP"),
    "TIFF": saved(SCENE, "TIFF"),
    "TIFF, LZW": saved(SCENE, "TIFF", compression="tiff_lzw"),
    "AVIF": saved(SCENE, "AVIF", quality=95, subsampling="4:4:4"),
    "WebP": saved(SCENE, "WEBP", lossless=True),
}  # fmt: skip


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_files_of_phones_and_programs_are_read(
    client: httpx.Client, stub: Any, expected: str, file: bytes
) -> None:
    assert answer(chat(client, data_url(file), max_tokens=12)) == expected
    assert infer_grpc(stub, file).raw_output_contents[0]


@pytest.mark.skipif(
    importlib.util.find_spec("pi_heif") is None, reason="pi-heif is not installed: `make setup`"
)
def test_heic_is_read(client: httpx.Client, stub: Any) -> None:
    assert chat(client, data_url(stored_files.TURNED)).status_code == 200
    assert infer_grpc(stub, stored_files.SMALL).raw_output_contents[0]


def test_an_animation_is_refused_by_its_frames(client: httpx.Client) -> None:
    frames = [SCENE, SCENE.rotate(90), SCENE.rotate(45)]
    for kind in ("GIF", "WEBP"):
        raw = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        message, _ = refused(chat(client, data_url(raw)))
        assert "is an animation of 3 frames; send a single picture" in message
