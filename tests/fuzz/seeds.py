"""The stored inputs of each target: small, valid ones of every form, which are made here, and those
that `corpus/` keeps beside them: what coverage has found, and what was mended.

A file of `corpus/` has one input a line: its name and its bytes in base64.

    python -m tests.fuzz.seeds add TARGET NAME FILE...
    python -m tests.fuzz.seeds unpack TARGET FOLDER
"""

from __future__ import annotations

import base64
import gzip
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.serving.hostile_cases import field, infer, varint
from tests.fuzz.targets import SPLIT

CORPUS = Path(__file__).parent / "corpus"
X = b" HTTP/1.1\r\nHost: x\r\n"


def picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (9, 7), **options: Any) -> bytes:
    made = Image.linear_gradient("L").resize(size).convert(mode)
    file = BytesIO()
    made.save(file, kind, **options)
    return file.getvalue()


def heads() -> Iterator[bytes]:
    yield b"GET /a?b" + X + b"\r\n"
    yield b"POST /a" + X + b"Content-Length: 5\r\n\r\nhelloGET /" + X + b"\r\n"
    yield (
        b"POST /a" + X + b"Transfer-Encoding: chunked\r\n\r\n"
        b'5;a="b"\r\nhello\r\n0\r\nA: b\r\n\r\nGET /' + X + b"\r\n"
    )
    yield b"GET http://x/a" + X + b"Connection: keep-alive, close\r\n\r\n"
    yield b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nab"
    yield b"\r\nPUT /" + X + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\na"
    yield b"GET /" + X + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


def inflating() -> Iterator[bytes]:
    data = b"hello " * 9
    raw = zlib.compressobj(wbits=-15)
    yield b"\0" + gzip.compress(data, mtime=0)
    yield b"\0" + gzip.compress(data, mtime=0) + gzip.compress(b"", mtime=0)
    yield b"\1" + zlib.compress(data)
    yield b"\1" + raw.compress(data) + raw.flush()
    yield b"\2" + zlib.compress(gzip.compress(data, mtime=0))
    many = data
    for _ in range(4):
        many = gzip.compress(many, mtime=0)
    yield b"\3" + many
    yield b"\0" + gzip.compress(bytes(2**21), mtime=0)


def jsons() -> Iterator[bytes]:
    yield b'{"a": [1, -0.5e3, true, false, null, "\\u00e9\\n\\ud83d\\ude00", {}], "b": {"c": []}}'
    yield b"\xef\xbb\xbf[1e308, 1E-400, -0, 12345678901234567890]"
    yield b'["' + b"\xc3\xa9" * 9 + b'\\"", ";base64,AAAA"]' + b" " * 1100
    yield b"[" * 32 + b"]" * 32


def chats() -> Iterator[bytes]:
    url = "data:image/png;base64," + base64.b64encode(picture("PNG")).decode()
    part = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    user = {"role": "user", "content": [{"type": "text", "text": "hi"}, part]}
    yield _text(model="m", messages=[{"role": "system", "content": "a"}, user], max_tokens=3)
    yield _text(
        model="m", messages=[{"role": "user", "content": "hi"}], n=2, stop=["a"], stream=True,
        stream_options={"include_usage": True}, temperature=0.5, top_p=0.9, seed=-1, top_k=4,
        response_format={"type": "text"}, tools=[], max_completion_tokens=-1, best_of=1,
    )  # fmt: skip


def images_bodies() -> Iterator[bytes]:
    yield _text(model="m", prompt="a", n=2, size="64x48", seed=7, response_format="b64_json")
    yield _text(
        model="m", prompt="a", width=64, height=64, num_inference_steps=2, guidance_scale=3.5,
        tier="lossless", quality="high", output_format="jpeg", output_compression=80, style=None,
        negative_prompt="b", true_cfg_scale=1, max_sequence_length=32, drop_params=True,
    )  # fmt: skip


def v2() -> Iterator[bytes]:
    prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a"]}
    image = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [["iVBORw0KGgo="]]}
    numbers = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2.5], [3e9, -4]]}
    flags = {"name": "y", "datatype": "BOOL", "shape": [2], "data": [True, False]}
    yield _text(id="1", inputs=[prompt, image], parameters={"a": 1, "binary_data_output": True})
    yield _text(
        inputs=[numbers, flags], outputs=[{"name": "a", "parameters": {"binary_data": True}}]
    )
    for datatype, raw in (
        ("BYTES", struct.pack("<I", 3) + b"abc"), ("INT64", struct.pack("<q", -5)),
        ("FP16", struct.pack("<e", 1.5)), ("UINT8", b"\x07"), ("BOOL", b"\x01"),
        ("FP64", struct.pack("<d", 0.1)),
    ):  # fmt: skip
        entry = {"name": "a", "datatype": datatype, "shape": [1]}
        entry["parameters"] = {"binary_data_size": len(raw)}
        head = _text(inputs=[entry, prompt, entry])
        yield str(len(head)).encode() + SPLIT + head + raw + raw


def protos() -> Iterator[bytes]:
    text = field(1, b"prompt") + field(2, b"BYTES")
    yield infer(text + b"\x18\x01" + field(5, field(8, b"hello")))
    number = field(1, b"seed") + field(2, b"INT64") + field(3, varint(3))
    yield infer(number + field(5, field(3, varint(1) + varint(2**63)) + b"\x18\x05"))
    double = field(1, b"x") + field(2, b"FP64") + b"\x18\x01"
    yield infer(double + field(5, field(7, struct.pack("<d", 0.5))))
    flags = field(1, b"y") + field(2, b"BOOL") + b"\x18\x01" + field(5, b"\x08\x01")
    value = field(1, b"p") + field(2, field(3, b"text"))
    yield infer(flags) + field(4, value) + field(4, field(1, b"q") + field(2, b"\x10\x05"))
    yield infer(text + b"\x18\x01") + field(7, struct.pack("<I", 2) + b"ab") + field(3, b"id")
    output = field(1, b"out") + field(2, field(1, b"binary_data") + field(2, b"\x08\x01"))
    yield infer(text + b"\x18\x01" + field(5, field(8, b"a"))) + field(6, output) + field(2, b"1")


def images() -> Iterator[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    yield picture("JPEG", exif=exif)
    yield picture("JPEG", "L", progressive=True)
    yield picture("JPEG", "CMYK")
    yield picture("GIF", "P")
    yield picture("BMP")
    yield picture("BMP", "1")
    yield picture("WEBP", lossless=True)
    yield picture("WEBP", "RGBA", exif=exif)
    yield picture("AVIF")
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield picture("TIFF", compression=compression)
    yield picture("TIFF", "1", compression="group4")
    yield picture("TIFF", "I;16")
    yield picture("TIFF", "P")


def pngs() -> Iterator[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 8
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        yield picture("PNG", mode)
    yield picture("PNG", exif=exif, transparency=(1, 2, 3))
    yield picture("PNG", "P", transparency=0)


def forms() -> Iterator[bytes]:
    file = picture("PNG", "LA", (2, 2))
    given = (("model", b"flux"), ("prompt", b"a"))
    yield form(*given, ("image", file))
    yield form(*given, ("image[]", file), ("image[]", file), ("mask", file), ("n", b"2"))
    more = (("strength", b"0.5"), ("size", b"64x64"), ("seed", b"-1"), ("user[id]", b"me"))
    yield b"\r\n" + form(*given, ("image", b"data:;base64,aGVsbG8="), *more) + b"epilogue"
    yield form(*given, ("image", file), ("stream", b"False"), ("metadata", b"full"), ("tier", b""))


def form(*fields: tuple[str, bytes]) -> bytes:
    """A form with the boundary of `targets.FORM_TYPE`. Pictures have file names and types."""
    parts = []
    for name, data in fields:
        is_file = data.startswith(b"\x89PNG")
        file = b'; filename="a.png"\r\nContent-Type: image/png' if is_file else b""
        head = b'Content-Disposition: form-data; name="%b"%b' % (name.encode(), file)
        parts.append(b"--x\r\n%b\r\n\r\n%b\r\n" % (head, data))
    return b"".join(parts) + b"--x--\r\n"


def data_urls() -> Iterator[bytes]:
    data = base64.b64encode(picture("PNG", "L", (2, 2)))
    yield b"data:image/png;base64," + data
    yield b" data:;BASE64," + data.replace(b"/", b"%2F").replace(b"+", b"%2b") + b"\n"
    yield b"data%3Aimage/png%3Bbase64%2C" + data
    yield data
    yield b"data:image/svg+xml,%3Csvg/%3E"
    yield b'data:image/png;a="b,c";base64,' + data.rstrip(b"=")
    yield b"https://x/a.png"


def responses() -> Iterator[bytes]:
    yield _text(model="m", input="a", instructions="s", max_output_tokens=3, metadata={"a": "b"})
    part = {"type": "input_image", "image_url": "data:image/png;base64,aGVsbG8=", "detail": "low"}
    said = {"type": "output_text", "text": "b", "annotations": []}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    yield _text(
        model="m",
        input=[
            {"role": "user", "content": [part, {"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "id": "r", "summary": []},
            {"type": "message", "role": "assistant", "id": "m", "content": [said]},
            call,
            {"type": "function_call_output", "call_id": "c", "output": "3"},
        ],
        tools=[{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        tool_choice={"type": "function", "name": "f"},
    )
    form = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}
    yield _text(model="m", input="a", text={"format": form}, include=[], store=True, stream=True)


def messages() -> Iterator[bytes]:
    image = {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}
    url = {"type": "url", "url": "data:image/png;base64,aGVsbG8="}
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": [1, None]}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": "3", "is_error": False}
    text = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    asked = {
        "role": "user",
        "content": [text, *({"type": "image", "source": x} for x in (image, url))],
    }
    thought = {"type": "thinking", "thinking": "", "signature": ""}
    tool = {"name": "f", "input_schema": {"type": "object"}, "strict": True}
    yield _text(
        model="m", max_tokens=3, system=[text], tools=[tool],
        tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        messages=[asked, {"role": "assistant", "content": [thought, text, use]},
                  {"role": "user", "content": [result, text]}],
    )  # fmt: skip
    hello, begun = ({"role": role, "content": "a"} for role in ("user", "assistant"))
    form = {"type": "json_schema", "schema": {"type": "object"}}
    yield _text(
        model="m", max_tokens=3, messages=[hello, begun], stop_sequences=["x"], stream=True,
        thinking={"type": "disabled"}, metadata={"user_id": "u"}, output_config={"format": form},
    )  # fmt: skip


def completions() -> Iterator[bytes]:
    yield _text(model="m", prompt="a", n=2, echo=True, stop="x", logit_bias={"1": -2})
    yield _text(model="m", prompt=["a", [1, 2]], logprobs=2, stream=True)


def tokenized() -> Iterator[bytes]:
    yield _text(prompt="a", return_token_strs=True)
    yield _text(model="m", messages=[{"role": "user", "content": "a"}], tools=[])


def tools() -> Iterator[bytes]:
    schema = {
        "type": "object", "properties": {"a": {"enum": ["b", 1]}, "c": {"$ref": "#/$defs/d"}},
        "required": ["a"], "$defs": {"d": {"type": "array", "items": {"type": "number"}}},
    }  # fmt: skip
    function = {"name": "f", "description": "a", "parameters": schema, "strict": True}
    count = {"type": "function", "function": function}
    bare = {"type": "function", "function": {"name": "count"}, "cache_control": {}}
    called = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [called | {"index": 0}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "3"}]},
    ]
    yield _text(model="m", messages=talk, tools=[count, bare])
    named = {"type": "function", "function": {"name": "f"}}
    yield _text(model="m", messages=talk[:1], tools=[count], tool_choice=named)
    allowed = {"mode": "required", "tools": [named]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    yield _text(
        model="m", messages=talk[:1], tools=[count, bare], tool_choice=choice,
        parallel_tool_calls=False, response_format={"type": "json_object"},
    )  # fmt: skip


def calls() -> Iterator[bytes]:
    one = '<tool_call>\n{"name": "f", "arguments": {"a": [1, "}\\"</tool_call>"]}}\n</tool_call>'
    yield one.replace("</tool_call>", "", 1).encode()
    yield b'a\n<tool_call>{"name":"count","arguments":{}}</tool_call>\n \xc3\xa9 b'
    yield (
        b'<tool_call>\n{"name": "no", "arguments": {}}\n</tool_call>\n<tool_call>\n'
        b'{"arguments": {"a": {}}, "name": "f"}\n</tool_call>'
    )


def _text(**body: Any) -> bytes:
    return json.dumps(body).encode()


SEEDS = {
    "head": heads, "inflating": inflating, "json": jsons, "chat": chats,
    "images_body": images_bodies, "v2": v2, "proto": protos, "image": images, "png": pngs,
    "data_url": data_urls, "form": forms, "responses": responses, "messages": messages,
    "completions": completions,
    "tokenize": tokenized, "tools": tools, "calls": calls,
}  # fmt: skip


def stored(target: str) -> list[bytes]:
    """The inputs of a target, the made ones first."""
    return [*SEEDS[target](), *kept(target).values()]


def kept(target: str) -> dict[str, bytes]:
    """The inputs of `corpus/` for a target, by name."""
    path = CORPUS / target
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: base64.b64decode(data) for name, data in (line.split(" ") for line in lines)}


def keep(target: str, inputs: dict[str, bytes]) -> None:
    """Replace a target's file of `corpus/`."""
    CORPUS.mkdir(exist_ok=True)
    lines = [f"{name} {base64.b64encode(raw).decode()}\n" for name, raw in sorted(inputs.items())]
    (CORPUS / target).write_text("".join(lines))


def main() -> None:
    verb, target, *rest = sys.argv[1:]
    if verb == "add":
        name, *files = rest
        found = {f"{name}-{i:03}": Path(file).read_bytes() for i, file in enumerate(files)}
        keep(target, kept(target) | found)
    elif verb == "unpack":
        for i, raw in enumerate(stored(target)):
            Path(rest[0], f"{i:04}").write_bytes(raw)


if __name__ == "__main__":
    main()
