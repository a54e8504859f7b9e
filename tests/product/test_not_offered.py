"""`docs/not-offered.md` is true: each of its rows is asked for, of a live server, of the command
line or of a folder, and is refused by its name, with what to do instead."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from predictors.__main__ import main
from tests.product.conftest import CHECKPOINTS

PAGE = CHECKPOINTS.parent / "docs" / "not-offered.md"
CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
DRAW, EDIT = "/v1/images/generations", "/v1/images/edits"
BODIES: Mapping[str, Mapping[str, Any]] = {
    CHAT: {"model": "qwen-vl", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    RESPONSES: {"model": "qwen-vl", "input": "x", "max_output_tokens": 1},
    COMPLETIONS: {"model": "qwen-vl", "prompt": "x", "max_tokens": 1},
    DRAW: {"model": "flux", "prompt": "x", "num_inference_steps": 1},
    EDIT: {"model": "flux", "prompt": "x", "num_inference_steps": 1},
}


@dataclass(frozen=True)
class Refused:
    """A request, and what its refusal says. `words` are parts of the message."""

    path: str
    words: tuple[str, ...]
    fields: Mapping[str, Any]
    status: int = 400


def refused(path: str, *words: str, status: int = 400, **fields: Any) -> Refused:
    return Refused(path, words, fields, status)


def data_url(kind: str, raw: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def of_picture(url: str, *words: str) -> Refused:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    return refused(CHAT, "image_url", *words, messages=[{"role": "user", "content": content}])


def of_schema(name: str, value: Any, *words: str) -> Refused:
    made = {"type": "json_schema", "json_schema": {"name": "a", "schema": {name: value}}}
    return refused(CHAT, f"schema.{name} is not supported", *words, response_format=made)


def picture(kind: str, frames: int = 1) -> bytes:
    file = BytesIO()
    first, *others = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(frames)]
    first.save(file, kind, **({"save_all": True, "append_images": others} if others else {}))
    return file.getvalue()


def camera_raw() -> bytes:
    """A TIFF that says it is a DNG."""
    file, tags = BytesIO(), Image.Exif()
    tags[50706] = b"\1\4\0\0"
    Image.new("RGB", (8, 8)).save(file, "TIFF", exif=tags)
    return file.getvalue()


TWO = [data_url("image/png", picture("PNG"))] * 2
SAMPLERS = {
    "mirostat": 2, "typical_p": 0.5, "tfs_z": 0.5, "dry_multiplier": 0.8, "xtc_probability": 0.1,
}  # fmt: skip
UNKNOWN, SAMPLER = "is not supported", "this sampler is not offered"
REQUESTS: Mapping[str, Sequence[Refused]] = {
    "`previous_response_id`, `conversation`": [
        refused(RESPONSES, "send the whole conversation", previous_response_id="resp_1"),
        refused(RESPONSES, "send the whole conversation", conversation="conv_1"),
    ],
    "`background` responses, batch files, asynchronous jobs": [
        refused(RESPONSES, "background", "it may only be false", background=True),
        refused("/v1/batches", "send them all at once", status=404),
        refused("/openai/v1/files", "send them all at once", status=404),
    ],
    "built-in tools: web search, code, files": [
        refused(RESPONSES, f"'{name}' {UNKNOWN}", "'function'", tools=[{"type": name}])
        for name in ("web_search", "code_interpreter", "file_search")
    ],
    "addresses of pictures and films": [
        of_picture("https://example.com/a.png", "fetches none", "send the picture itself"),
    ],
    "`/v1/audio`, `/v1/embeddings`, moderation": [
        refused("/v1/audio/speech", "no served model hears or speaks", status=404),
        refused("/v1/embeddings", "no served model makes embeddings", status=404),
        refused("/v1/moderations", "PREDICTORS_FLUX_CHECKER", status=404),
    ],
    "KServe's V1 `:predict`, `:explain`": [
        refused(f"/v1/models/flux:{verb}", "use POST /v2/models/flux/infer", status=501)
        for verb in ("predict", "explain")
    ],
    "`load`, `unload` of a repository": [
        refused(f"/v2/repository/models/flux/{verb}", "SERVER_REPOSITORY_API", status=501)
        for verb in ("load", "unload")
    ],
    "`prompt_logprobs`; `logprobs` with `echo`": [
        refused(CHAT, "prompt_logprobs", "only the answer's tokens", prompt_logprobs=1),
        refused(COMPLETIONS, "prompt_logprobs", "only the answer's tokens", prompt_logprobs=1),
        refused(COMPLETIONS, "leave echo or logprobs out", echo=True, logprobs=1),
    ],
    "`allowed_token_ids`": [
        refused(path, "allowed_token_ids", "use logit_bias", allowed_token_ids=[1])
        for path in (CHAT, COMPLETIONS)
    ],
    "`logits_processors`, `chat_template`": [
        refused(CHAT, "no code of a caller is run", logits_processors=["a"]),
        refused(COMPLETIONS, "no code of a caller is run", logits_processors=["a"]),
        refused(CHAT, "the checkpoint's chat template is used", chat_template="{{ x }}"),
    ],
    "`mirostat`, `typical_p`, `tfs_z`, `dry_...`, `xtc_...`": [
        refused(path, name, SAMPLER, **{name: value})
        for path in (CHAT, COMPLETIONS)
        for name, value in SAMPLERS.items()
    ],
    "`truncate_prompt_tokens`, `truncation: auto`": [
        refused(CHAT, "prompts are not shortened", truncate_prompt_tokens=4),
        refused(COMPLETIONS, "prompts are not shortened", truncate_prompt_tokens=4),
        refused(RESPONSES, "prompts are not shortened", "'disabled'", truncation="auto"),
    ],
    "`cache_salt`": [
        refused(path, "the prefix cache is shared by all callers", cache_salt="a")
        for path in (CHAT, COMPLETIONS)
    ],
    "`prediction`": [
        refused(CHAT, "no speculative decoding", prediction={"type": "content", "content": "x"})
    ],
    "`suffix`": [refused(COMPLETIONS, "not trained to fill in", suffix="x")],
    "`not`, `if`, `uniqueItems`, ... of a schema": [
        of_schema("not", {"type": "string"}, "name what is allowed instead"),
        of_schema("if", {"type": "object"}, "use anyOf"),
        of_schema("uniqueItems", True, "check the answer"),
    ],
    "several reference pictures for FLUX.1-Kontext": [
        refused(EDIT, "image holds 2 pictures", "takes one", image=TWO)
    ],
    "`response_format: url` with several replicas": [
        refused(DRAW, "with several replicas it must stay empty", "b64_json", response_format="url")
    ],
    "animations, SVG, PDF, camera raw, JPEG XL as inputs": [
        of_picture(data_url("image/gif", picture("GIF", 2)), "is an animation", "single picture"),
        of_picture(data_url("image/svg+xml", b"<svg/>"), "is an SVG drawing", "PNG, JPEG"),
        of_picture(data_url("application/pdf", b"%PDF-1.7\n"), "application/pdf, not of a picture"),
        of_picture(data_url("image/tiff", camera_raw()), "a camera's raw file", "JPEG or PNG"),
        of_picture(data_url("image/jxl", b"\xff\x0a" + bytes(50)), "is a JPEG XL picture", "PNG"),
    ],
}
"""By the first cell of a row."""


def test_quality_is_taken_and_changes_nothing(http: httpx.Client) -> None:
    """The one row of a field that is not refused."""
    seeded = {**BODIES[DRAW], "seed": 7}
    plain, low = (http.post(DRAW, json=seeded | more) for more in ({}, {"quality": "low"}))
    assert plain.status_code == low.status_code == 200
    pictures = [Image.open(BytesIO(base64.b64decode(each.json()["data"][0]["b64_json"]))).tobytes()
                for each in (plain, low)]  # fmt: skip
    assert pictures[0] == pictures[1]


# -- folders and files -----------------------------------------------------------------------------
def named(folder: Path, file: str, content: Mapping[str, Any]) -> Path:
    folder.mkdir()
    (folder / file).write_text(json.dumps(content))
    return folder


def pipeline(folder: Path, name: str) -> Path:
    return named(folder, "model_index.json", {"_class_name": name})


def other_architectures(folder: Path) -> list[tuple[Path, str]]:
    names = ("Flux2Pipeline", "StableDiffusion3Pipeline", "StableDiffusionXLPipeline")
    names += ("ChromaPipeline", "ZImagePipeline", "QwenImagePipeline")
    said = "is another architecture than FLUX.1"
    return [(pipeline(folder / name, name), said) for name in names]


def control_pipelines(folder: Path) -> list[tuple[Path, str]]:
    names = ("FluxControlPipeline", "FluxControlNetPipeline")
    said = "{}; control pictures are not offered: take"
    return [(pipeline(folder / name, name), said.format(name)) for name in names]


def mixtures_of_experts(folder: Path) -> list[tuple[Path, str]]:
    name = "Qwen3VLMoeForConditionalGeneration"
    made = named(folder / "moe", "config.json", {"architectures": [name]})
    return [(made, "take a dense Qwen3-VL")]


def other_formats(folder: Path) -> list[tuple[Path, str]]:
    (folder / "gguf").mkdir()
    (folder / "gguf" / "flux1-dev-Q4_K.gguf").write_bytes(b"GGUF")
    return [(folder / "gguf", "GGUF")]


def pickles(folder: Path) -> list[tuple[Path, str]]:
    shutil.copytree(CHECKPOINTS / "shapes-flux", folder / "pickled")
    (weights,) = (folder / "pickled" / "vae").glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    return [(folder / "pickled", "safetensors")]


FOLDERS = {
    "FLUX.2, SD3, SDXL, Chroma, Z-Image, Qwen-Image": other_architectures,
    "FLUX.1-Depth, -Canny, ControlNets, IP-Adapters": control_pipelines,
    "Qwen-VL with a mixture of experts": mixtures_of_experts,
    "GGUF, NVFP4, MXFP4, SVDQuant, torchao, quanto, HQQ, ...": other_formats,
    "pickles (`.bin`, `.pt`, `.ckpt`)": pickles,
}
"""By the first cell of a row: folders, and what `check` says of each."""
LORAS = {
    "DoRA, OFT, IA3, VeRA adapters, LoKr of whole matrices": {
        "lokr_t2": "LoKr", "hada_t1": "LoHa", "dora_scale": "DoRA", "oft_blocks": "OFT",
        "ia3_l": "IA3", "vera_lambda_b": "VeRA",
    },
    "adapters with `modules_to_save`, biases": {
        "modules_to_save.weight": "modules_to_save", "lora_B.bias": "bias",
    },
}  # fmt: skip
"""By the first cell of a row: the end of a tensor's name, and a word of the refusal."""
NO_REQUEST = {
    "`reasoning_content` of thinking models": "tests/models/qwen3_vl/test_thinking.py",
    "quantised weights that stay small in memory": "memory; `check` shows it",
    "downloads at the start": "tests/product/test_refused_starts.py",
    "several GPUs for one model": "there is no setting for it",
    "offloading to host memory": "there is no setting for it",
    "an image in a registry": "nothing to ask",
    "Knative": "the chart has no value for it",
    "the same bytes on two kinds of card": "a property of cards",
    "`quality` that makes a picture less exact": "test_quality_is_taken_and_changes_nothing",
    "pasting the source over what a mask keeps": "there is no field for it",
    "pictures in results of tools": "tests/protocol/anthropic",
    "Anthropic's batches, files, models and server tools": "a 404 with the path",
    "weights streamed from S3 into the card (`runai-model-streamer`)": "there is no setting for it",
}
"""Rows of what can't be asked for in one call, and why."""


def rows() -> list[str]:
    """The first cells of the page's tables."""
    lines = re.findall(r"^\| (.+?) \| .+\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [line for line in lines if line != "not offered"]


def test_every_row_is_asked_for_or_says_why_it_is_not() -> None:
    assert len(rows()) > 30
    assert set(rows()) <= REQUESTS.keys() | FOLDERS.keys() | LORAS.keys() | NO_REQUEST.keys()


@pytest.mark.parametrize("row", REQUESTS)
def test_a_request_for_it_is_refused_by_name(row: str, http: httpx.Client) -> None:
    for each in REQUESTS[row]:
        answer = http.post(each.path, json={**BODIES.get(each.path, {}), **each.fields})
        assert answer.status_code == each.status, f"{each}\n{answer.text[:400]}"
        error = answer.json()["error"]
        message = error if isinstance(error, str) else error["message"]
        for words in each.words:
            assert words in message, f"{words!r} is not in {message!r}"


@pytest.mark.parametrize("row", FOLDERS)
def test_a_folder_of_it_is_refused_by_name(
    row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, words in FOLDERS[row](tmp_path):
        assert main(["check", str(folder), "--json"]) == 2
        report = json.loads(capsys.readouterr().out)
        reason = report["error"]["message"] if "error" in report else report["reason"]
        assert words in reason


@pytest.mark.parametrize(("end", "word"), [each for row in LORAS.values() for each in row.items()])
def test_an_adapter_of_it_is_refused_by_name(
    end: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (weights,) = (CHECKPOINTS / "shapes-loras" / "all-cyan").glob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    tensors[name.replace("lora_A.weight", end)] = tensors[name].clone()
    save_file(tensors, tmp_path / "odd.safetensors")
    lora = f"odd={tmp_path / 'odd.safetensors'}"
    code = main(["check", str(CHECKPOINTS / "shapes-flux"), "--lora", lora, "--json"])
    printed = capsys.readouterr().out
    assert code == 2, printed
    assert word in printed
