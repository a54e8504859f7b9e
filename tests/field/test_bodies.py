"""Bodies as clients send them: fields of other servers, picture fields, seeds, long prompts."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from predictors.errors import InvalidRequest, PromptTooLong
from predictors.protocol.call import Call
from predictors.protocol.faults import fault_of
from predictors.protocol.http.app import RestApp
from predictors.protocol.openai import chat_body, images_body
from predictors.protocol.openai.chat_body import NO_LIMIT, read_chat_body
from predictors.protocol.openai.clients import CHAT_CLIENTS, MESSAGE_CLIENTS
from predictors.protocol.openai.fields import DescribedRule
from predictors.protocol.openai.image_clients import IMAGE_CLIENTS
from predictors.protocol.openai.images_body import ImagesBody, read_images_body
from predictors.protocol.openai.picture_files import MAX_FILES
from predictors.settings import ServerSettings, Settings
from tests.http.echo import png, serving, small_settings
from tests.http.openai_echo import Artist, words
from tests.protocol.openai.doubles import CHAT as CHAT_ROUTE
from tests.protocol.openai.doubles import IMAGES, Chatter, Painter, Wire, application, post

PICTURE = "data:image/png;base64,AAAA"
HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "m", "messages": HELLO}
DRAW = {"model": "m", "prompt": "a red circle"}

OPEN_WEBUI: dict[str, Any] = {
    # docs.openwebui.com, "Backend-Controlled, UI-Compatible API Flow", the completion it triggers
    "chat_id": "8b3c",
    "id": "assistant-message-id",
    "session_id": "s",
    "stream": True,
    "background_tasks": {"title_generation": True, "tags_generation": False},
    "features": {"code_interpreter": False, "web_search": False, "image_generation": False},
    "variables": {"{{USER_NAME}}": "", "{{CURRENT_DATE}}": "2026-01-01"},
    "model_item": {"id": "qwen-vl", "object": "model", "owned_by": "openai"},
    "tool_servers": [],
    "filter_ids": [],
    "tool_ids": [],
    "files": [],
    "params": {},
    "terminal_id": None,
}
HARMLESS: dict[str, dict[str, Any]] = {
    "Open WebUI": OPEN_WEBUI,
    "Open WebUI, a person": {"user": {"name": "a", "id": "1", "email": "a@b", "role": "user"}},
    "LiteLLM": {"drop_params": True, "extra_body": {}, "tags": ["a"], "litellm_call_id": "x"},
    "LangChain": {"n": 1, "parallel_tool_calls": False, "tool_choice": "auto", "logit_bias": None},
    "LangChain.js": {"stream": False, "stream_options": {"include_usage": True}, "top_p": 1},
    "LibreChat": {"user": "662f", "presence_penalty": 0, "frequency_penalty": 0},
    "n8n": {"response_format": {"type": "text"}, "max_tokens": -1, "temperature": 0.7},
    "Cline": {"stream": True, "tool_choice": "auto", "parallel_tool_calls": False},
    "AI SDK": {"store": False, "metadata": {}, "service_tier": "auto", "safety_identifier": "x"},
    "vLLM": {"skip_special_tokens": True, "add_generation_prompt": True, "min_tokens": 0}
    | {"best_of": 1, "use_beam_search": False, "length_penalty": 1.0, "priority": 0, "min_p": 0.0}
    | {"chat_template_kwargs": {"enable_thinking": False}, "guided_json": None, "echo": False},
    "llama.cpp": {"cache_prompt": True, "mirostat": 0, "mirostat_tau": 5, "typical_p": 1}
    | {"xtc_probability": 0, "xtc_threshold": 0.1, "dry_multiplier": 0, "repeat_last_n": 64}
    | {"repeat_penalty": 1, "timings_per_token": False, "reasoning_format": "none", "n_keep": 0},
    "LM Studio": {"max_tokens": -1, "max_completion_tokens": -1},
    "Ollama": {"keep_alive": "5m", "options": {}, "think": False, "format": ""},
    "SGLang": {"regex": None, "min_new_tokens": 0, "separate_reasoning": True},
    "DashScope": {"enable_thinking": False, "enable_search": False, "thinking_budget": 4096},
    "Anthropic and Z.ai": {"thinking": {"type": "disabled"}},
    "OpenRouter": {"transforms": [], "include_reasoning": False, "provider": {}},
}
DRAWN_ALIKE: list[dict[str, Any]] = [
    *({"quality": quality} for quality in ("auto", "low", "medium", "high", "standard", "hd")),
    *({"style": style} for style in ("vivid", "natural", "auto")),
    *({"moderation": how} for how in ("low", "auto")),
    *({"background": how} for how in ("auto", "opaque")),
    {"size": "auto", "n": 1, "user": "u", "partial_images": 0, "stream": False},
    {"seed": -1},
    {"response_format": "b64_json"},
    {"drop_params": True, "extra_body": {}, "extra_headers": {}},
]
SAID: dict[str, Any] = {"role": "assistant", "content": "a red circle"}
MESSAGES: dict[str, dict[str, Any]] = {
    "an id": {"id": "chatcmpl-1"},
    "a number as id": {"id": 1947269257, "opts": {"visible": True}},
    "an answer's fields": {"created_at": 1, "finish_reason": "stop", "usage": {}, "index": 0},
    "LiteLLM's": {"provider_specific_fields": {"refusal": None}, "images": []},
    "a cache mark": {"cache_control": {"type": "ephemeral"}},
    "a name": {"name": "bot"},
    "LangChain's": {"additional_kwargs": {}, "response_metadata": {"model": "x"}},
    "Responses'": {"type": "message", "status": "completed"},
    "Open WebUI's": {"parentId": "a", "childrenIds": [], "timestamp": 1, "models": ["m"]},
}
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("text", {"type": "text", "text": "x"}),
    "Responses' text": ("text", {"type": "input_text", "text": "x"}),
    "Responses' answer": ("text", {"type": "output_text", "text": "x", "annotations": []}),
    "a cached text": ("text", {"type": "text", "text": "x", "cache_control": {"type": "e"}}),
    "a picture": ("picture", {"type": "image_url", "image_url": {"url": PICTURE}}),
    "a picture's format": (
        "picture",
        {"type": "image_url", "image_url": {"url": PICTURE, "format": "image/png"}},
    ),
    "Responses' picture": ("picture", {"type": "input_image", "image_url": PICTURE}),
    "Responses' picture without a file": (
        "picture",
        {"type": "input_image", "image_url": PICTURE, "file_id": None},
    ),
    "Qwen's picture": ("picture", {"type": "image", "image": PICTURE}),
    "a cached picture": (
        "picture",
        {"type": "image_url", "image_url": {"url": PICTURE}, "cache_control": {}, "uuid": "1"},
    ),
}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"min_p": 1.5}, "min_p", "from 0 to 1"),
    ({"best_of": 2}, "best_of", "only be 1"),
    ({"use_beam_search": True}, "use_beam_search", "only be false"),
    ({"mirostat": 2}, "mirostat", "sampler is not offered"),
    ({"repeat_penalty": 1.1}, "repeat_penalty", "use repetition_penalty"),
    ({"features": {"web_search": True}}, "features.web_search", "no such feature"),
    ({"tool_ids": ["x"]}, "tool_ids", "no tools of its own"),
    ({"prompt_logprobs": 0}, "prompt_logprobs", "only the answer's tokens"),
    ({"return_token_ids": True}, "return_token_ids", "use logprobs"),
    ({"extra_body": {"top_k": 1}}, "extra_body", "belong into the body itself"),
    ({"cache_salt": "secret"}, "cache_salt", "shared by all callers"),
    ({"guided_json": []}, "guided_json", "JSON Schema"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"max_tokens": -2}, "max_tokens", "or -1"),
    ({"mirostat_tau": "5"}, "mirostat_tau", "a number"),
    ({"mirostat_tau": True}, "mirostat_tau", "a number"),
    ({"chat_ids": "x"}, "chat_ids", "did you mean 'chat_id'"),
    ({"min_token": 0}, "min_token", "did you mean 'min_tokens'"),
]


def messages(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize("client", HARMLESS)
def test_what_a_client_sends_beside_the_chat_changes_nothing(client: str) -> None:
    fields = dict(HARMLESS[client])
    known = {name: fields.pop(name) for name in list(fields) if name in KEPT}
    assert read_chat_body(CHAT | known | fields) == read_chat_body(CHAT | known)


KEPT = {"stream", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n"} | {
    "presence_penalty", "frequency_penalty", "stream_options",
    "min_p", "add_generation_prompt", "chat_template_kwargs",
}  # fmt: skip
"""Fields of `HARMLESS` that are served."""


def test_every_value_that_a_table_allows_is_taken_and_dropped() -> None:
    for read, base, tables in (
        (read_chat_body, CHAT, CHAT_CLIENTS),
        (read_images_body, DRAW, IMAGE_CLIENTS),
    ):
        for table in tables.values():
            for name, rule in table.items():
                for value in examples(rule):
                    assert read(base | {name: value}) == read(base), (name, value)  # type: ignore[operator]


def test_every_value_that_the_messages_table_allows_is_taken_and_dropped() -> None:
    for table in MESSAGE_CLIENTS.values():
        for name, rule in table.items():
            for value in examples(rule):
                body = {"model": "m", "messages": [SAID | {name: value}, *HELLO]}
                assert read_chat_body(body) == read_chat_body(
                    {"model": "m", "messages": [SAID, *HELLO]}
                )


def examples(rule: DescribedRule) -> list[Any]:
    """Values that the rule's schema takes, null among them."""
    by_type = {"string": "x", "boolean": True, "number": 1.5, "array": ["x"], "object": {}}
    kinds = rule.schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    found = [by_type[kind] for kind in kinds if kind != "null"]
    return [*rule.schema.get("enum", []), *found, None]


@pytest.mark.parametrize(
    "table", [*CHAT_CLIENTS.values(), *MESSAGE_CLIENTS.values(), *IMAGE_CLIENTS.values()]
)
def test_every_field_that_only_some_values_pass_is_refused_with_the_reason(
    table: dict[str, DescribedRule],
) -> None:
    for name, rule in table.items():
        if "enum" in rule.schema or rule.schema.get("type") == "null":
            with pytest.raises(InvalidRequest, match=r"is not supported: .+") as refused:
                rule(name, "another value")
            assert refused.value.param == name


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_a_value_that_would_change_the_answer_is_refused_by_name(
    fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_chat_body(CHAT | fields)
    assert refused.value.param == param
    assert words in refused.value.message


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_of_minus_one_is_no_limit(name: str) -> None:
    assert read_chat_body(CHAT | {name: -1}).max_tokens == NO_LIMIT
    assert read_chat_body(CHAT | {name: -1.0}).max_tokens == NO_LIMIT


@pytest.mark.parametrize("seed", [-1, -1.0])
def test_a_seed_of_minus_one_is_drawn(seed: float) -> None:
    assert read_chat_body(CHAT | {"seed": seed}) == read_chat_body(CHAT)
    assert read_images_body(DRAW | {"seed": seed}) == read_images_body(DRAW)


@pytest.mark.parametrize("case", MESSAGES)
def test_an_answer_is_taken_back_with_what_came_with_it(case: str) -> None:
    plain = read_chat_body({"model": "m", "messages": [SAID, *HELLO]})
    extended = {"model": "m", "messages": [SAID | MESSAGES[case], *HELLO]}
    assert read_chat_body(extended) == plain


@pytest.mark.parametrize("case", PARTS)
def test_a_part_is_read_in_every_spelling(case: str) -> None:
    kind, part = PARTS[case]
    plain = PARTS["text"][1] if kind == "text" else PARTS["a picture"][1]
    body = {"model": "m", "messages": messages(part)}
    assert read_chat_body(body) == read_chat_body({"model": "m", "messages": messages(plain)})


@pytest.mark.parametrize(
    ("part", "param", "words"),
    [
        (
            {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
            "source",
            "send the picture as a data URL in `image`",
        ),
        ({"type": "image"}, "image", "is required"),
        ({"type": "image", "url": PICTURE}, "url", "send the picture as a data URL in `image`"),
        (
            {"type": "image", "image": PICTURE, "resized_height": 280},
            "resized_height",
            "use min_pixels and max_pixels",
        ),
        ({"type": "image", "image": "https://x/a.png"}, "image", "image"),
        ({"type": "image", "data": "AAAA", "mimeType": "image/png"}, "data", "unknown field"),
        ({"type": "input_image", "file_id": "f"}, "file_id", "files are not kept"),
        ({"type": "input_image", "image_url": "file:///etc/passwd"}, "image_url", "image_url"),
        ({"type": "input_file", "file_id": "f"}, "type", "parts are text, image_url or video_url"),
        ({"type": "text", "text": "x", "annotations": [{}]}, "annotations", "only be []"),
    ],
    ids=str,
)
def test_a_part_that_is_not_read_is_refused_by_name(
    part: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_chat_body({"model": "m", "messages": messages(part)})
    assert str(refused.value.param).startswith(f"messages[0].content[0].{param}")
    assert words in refused.value.message


@pytest.mark.parametrize("fields", DRAWN_ALIKE, ids=str)
def test_what_a_client_sends_beside_the_prompt_changes_nothing(fields: dict[str, Any]) -> None:
    assert read_images_body(DRAW | fields) == read_images_body(DRAW)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": "transparent"}, "background"),
        ({"quality": "lossless"}, "quality"),
        ({"quality": "turbo"}, "quality"),
        ({"style": "dark"}, "style"),
        ({"partial_images": 1}, "partial_images"),
        ({"progress": True}, "progress"),
        ({"output_format": "gif"}, "output_format"),
    ],
    ids=str,
)
def test_what_would_change_the_picture_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_images_body(DRAW | fields)
    assert refused.value.param == param


def test_no_field_of_a_client_hides_one_that_is_served() -> None:
    for own, tables in (
        (chat_body.OWN_FIELDS, CHAT_CLIENTS),
        (images_body.OWN_FIELDS, IMAGE_CLIENTS),
        (images_body.SERVICES, IMAGE_CLIENTS),
    ):
        assert not own.keys() & {name for table in tables.values() for name in table}


# -- pictures by address ---------------------------------------------------------------------------
PNG = b"\x89PNG\r\n\x1a\n of a test"


class Drawer(Painter):
    """Answers a file of its own for each picture."""

    async def images(self, body: ImagesBody, call: Call) -> dict[str, Any]:
        answer = await super().images(body, call)
        files = [b64encode(PNG + bytes([i])).decode() for i in range(body.n)]
        data = [{"b64_json": file, "seed": i} for i, file in enumerate(files)]
        return answer | {"data": data, "output_format": body.output_format or "png"}


def by_address(**settings: Any) -> RestApp:
    own = ServerSettings(**{"public_url": "https://pictures.example.com", **settings})
    return application(Drawer(), settings=Settings(server=own))


async def test_a_picture_is_fetched_from_the_address_that_the_answer_gives() -> None:
    app = by_address()
    wire = await post(IMAGES, DRAW | {"model": "flux", "response_format": "url", "n": 2}).run(app)
    assert wire.status == 200
    assert [set(entry) for entry in wire.json["data"]] == [{"url", "seed", "expires_at"}] * 2
    for i, entry in enumerate(wire.json["data"]):
        path = entry["url"].removeprefix("https://pictures.example.com")
        for prefix in ("", "/openai"):
            got = await Wire("GET", prefix + path).run(app)
            assert (got.status, got.body) == (200, PNG + bytes([i]))
        assert got.answered["content-type"] == "image/png"
        assert got.answered["cache-control"] == "private, no-store"
        assert got.answered["x-content-type-options"] == "nosniff"
        assert (await Wire("HEAD", path).run(app)).status == 200


async def test_an_address_is_a_400_where_the_operator_gave_none() -> None:
    app = application(painter := Drawer())
    wire = await post(IMAGES, DRAW | {"model": "flux", "response_format": "url"}).run(app)
    assert (wire.status, wire.error["param"]) == (400, "response_format")
    assert "PREDICTORS_SERVER_PUBLIC_URL" in wire.error["message"]
    assert painter.bodies == []  # nothing was drawn in vain


async def test_a_picture_that_made_room_is_a_410_and_an_unknown_one_a_404() -> None:
    app = by_address(picture_url_bytes=2**20)
    drawn = await post(IMAGES, DRAW | {"model": "flux", "response_format": "url"}).run(app)
    path = drawn.json["data"][0]["url"].removeprefix("https://pictures.example.com")
    for _ in range(MAX_FILES // 16):
        await post(IMAGES, DRAW | {"model": "flux", "response_format": "url", "n": 16}).run(app)
    gone = await Wire("GET", path).run(app)
    assert (gone.status, gone.error["code"]) == (410, "gone")
    unknown = await Wire("GET", f"{path[:-8]}aaaa.png").run(app)
    assert (unknown.status, unknown.error["code"]) == (404, "not_found")


async def test_the_access_log_does_not_have_an_address(caplog: pytest.LogCaptureFixture) -> None:
    app = by_address()
    wire = await post(IMAGES, DRAW | {"model": "flux", "response_format": "url"}).run(app)
    path = wire.json["data"][0]["url"].removeprefix("https://pictures.example.com")
    with caplog.at_level("INFO", "predictors.access"):
        await Wire("GET", path).run(app)
    (record,) = caplog.records
    assert record.getMessage().startswith("GET /v1/images/files/* 200")
    assert path.rpartition("/")[2] not in str(vars(record))


def test_a_picture_by_address_is_fetched_over_a_real_connection() -> None:
    own = small_settings(server={"public_url": "https://pictures.example.com/flux"})
    with serving(Artist("flux", words(), own), settings=own) as running, running.client() as http:
        body = {"model": "flux", "prompt": "a", "response_format": "url"}
        entry = http.post("/v1/images/generations", json=body).json()["data"][0]
        path = entry["url"].removeprefix("https://pictures.example.com/flux")
        got, head = http.get(path), http.head(path)
        assert got.content == png()
        assert head.content == b""
        for answer in (got, head, http.head(f"{path}/")):
            assert answer.headers["content-length"] == str(len(png()))
            assert answer.headers["content-type"] == "image/png"
        assert http.get(path, headers={"origin": "https://evil.example"}).status_code == 403
        for wrong in ("x", "..", "%2e%2e", path.rpartition("/")[2][:-1], "a" * 5000):
            assert http.get(f"/v1/images/files/{wrong}").status_code in {404, 421}, wrong
        assert http.post(path).status_code == 405


# -- the names of models ---------------------------------------------------------------------------
@pytest.mark.parametrize("path", [CHAT_ROUTE, IMAGES])
async def test_a_body_without_a_model_is_told_the_models_of_its_route(path: str) -> None:
    app = application(Painter("flux"), Painter("flux-2"), Chatter("qwen-vl"))
    wire = await post(path, {"prompt": "x", "messages": HELLO}).run(app)
    assert wire.status == 400
    wire = await post(path, {"prompt": "x"} if path == IMAGES else {"messages": HELLO}).run(app)
    assert (wire.status, wire.error["param"]) == (400, "model")
    served = "flux, flux-2" if path == IMAGES else "qwen-vl"
    assert wire.error["message"] == f"model is required; served here: {served}"


# -- the context -----------------------------------------------------------------------------------
async def test_a_prompt_that_does_not_fit_has_openais_code_and_both_numbers() -> None:
    chatter = Chatter()
    chatter.error = PromptTooLong.of(4096, 5000, 512)
    wire = await post(CHAT_ROUTE, CHAT | {"model": "qwen-vl"}).run(application(chatter))
    assert (wire.status, wire.error["code"]) == (400, "context_length_exceeded")
    assert wire.error["type"] == "invalid_request_error"
    assert wire.error["param"] == "max_tokens"
    assert wire.error["message"] == (
        "This model's maximum context length is 4096 tokens. However, you requested 5512 tokens "
        "(5000 in the messages, 512 in the completion). Please reduce the length of the messages "
        "or completion. (context_length_exceeded)"
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_a_limit_by_its_newer_name_is_refused_by_that_name(stream: bool) -> None:
    chatter = Chatter()
    chatter.error = PromptTooLong.of(4096, 5000, 512)
    body = CHAT | {"model": "qwen-vl", "max_completion_tokens": 512, "stream": stream}
    wire = await post(CHAT_ROUTE, body).run(application(chatter))
    assert (wire.status, wire.error["param"]) == (400, "max_completion_tokens")
    body |= {"max_tokens": 512}
    chatter.error = PromptTooLong.of(4096, 5000, 512)
    wire = await post(CHAT_ROUTE, body).run(application(chatter))
    assert wire.error["param"] == "max_tokens"


def test_a_prompt_that_alone_does_not_fit_says_so() -> None:
    error = PromptTooLong.of(4096, 5000, share="4900 of them for 1 picture")
    assert "maximum context length is 4096 tokens. However, your messages" in error.message
    assert "5000 tokens, 4900 of them for 1 picture" in error.message
    assert error.param == "messages"
    fault = fault_of(error)
    assert (fault.status, fault.grpc_code.name) == (400, "INVALID_ARGUMENT")
    assert json.loads(fault.v2_body()) == {"error": error.message}
