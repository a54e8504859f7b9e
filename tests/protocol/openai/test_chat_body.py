"""The fields of a chat body: what is read, what is dropped, and what is refused by name."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.errors import InvalidRequest
from predictors.protocol.openai.chat_body import (
    FIELDS,
    OWN_FIELDS,
    ChatBody,
    StreamOptions,
    read_chat_body,
)
from predictors.protocol.openai.conversation import BodyMessage, PicturePart
from predictors.protocol.openai.format_fields import FORMAT_FIELDS

HELLO = [{"role": "user", "content": "hello"}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
FILE = PicturePart(bytes(3))


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "qwen-vl", "messages": HELLO} | fields


def checked(*messages: BodyMessage, **fields: Any) -> ChatBody:
    """The checked body, of `HELLO` when no messages are given."""
    return ChatBody("qwen-vl", messages or (BodyMessage("user", ("hello",)),), **fields)


def asked(content: Any, **fields: Any) -> dict[str, Any]:
    return body(messages=[{"role": "user", "content": content} | fields])


def test_a_full_body_is_read_with_one_name_for_each_parameter() -> None:
    read = read_chat_body(
        body(
            max_completion_tokens=7,
            temperature=0,
            top_p=0.5,
            top_k=-1,
            repetition_penalty=1.05,
            presence_penalty=-2,
            frequency_penalty=2,
            seed=2**53 - 1,
            stop="\n",
            n=2,
            ignore_eos=True,
            stream=True,
            stream_options={"include_usage": True, "include_obfuscation": False},
        )
    )
    assert read == checked(
        max_tokens=7,
        temperature=0.0,
        top_p=0.5,
        top_k=-1,
        repetition_penalty=1.05,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        seed=2**53 - 1,
        stop=("\n",),
        n=2,
        ignore_eos=True,
        stream=True,
        stream_options=StreamOptions(include_usage=True),
    )


def test_null_means_absent_for_every_optional_field() -> None:
    nulls = dict.fromkeys(set(FIELDS) - {"model", "messages"})
    assert read_chat_body(body(**nulls)) == checked()


def test_standard_fields_that_change_nothing_are_accepted_and_dropped() -> None:
    read = read_chat_body(
        body(
            user="u",
            metadata={"a": "b"},
            store=True,
            safety_identifier="s",
            service_tier="flex",
            prompt_cache_key="k",
            prompt_cache_retention="24h",
            prompt_cache_options={},
            tools=[],
            tool_choice="none",
            functions=[],
            function_call="none",
            logprobs=False,
            top_logprobs=0,
            logit_bias={},
            modalities=["text"],
            reasoning_effort="none",
            verbosity="medium",
            response_format={"type": "text"},
        )
    )
    assert read == checked()


def test_both_names_of_the_token_limit_may_be_given_when_they_agree() -> None:
    assert read_chat_body(body(max_tokens=5, max_completion_tokens=5)) == checked(max_tokens=5)


def test_parts_keep_their_order_and_developer_becomes_system() -> None:
    text = {"type": "text", "text": "what?"}
    messages = [
        {"role": "developer", "content": "be brief", "name": "boss"},
        {"role": "user", "content": [PICTURE, text, PICTURE]},
        {"role": "assistant", "content": [text]},
    ]
    assert read_chat_body(body(messages=messages)) == checked(
        BodyMessage("system", ("be brief",)),
        BodyMessage("user", (FILE, "what?", FILE)),
        BodyMessage("assistant", ("what?",)),
    )


def test_an_assistants_message_is_accepted_as_the_openai_client_dumps_it() -> None:
    from openai.types.chat import ChatCompletionMessage

    said = ChatCompletionMessage(role="assistant", content="a red circle").model_dump()
    assert set(said) > {"role", "content"}  # the client adds nulls; else this tests nothing
    messages = [*HELLO, said | {"annotations": [], "tool_calls": []}, *HELLO]
    hello = BodyMessage("user", ("hello",))
    answer = BodyMessage("assistant", ("a red circle",))
    assert read_chat_body(body(messages=messages)) == checked(hello, answer, hello)


def test_the_picture_may_be_a_plain_string() -> None:
    url = "data:;base64,AAAA"
    for image in (url, {"url": url}):
        read = read_chat_body(asked([{"type": "image_url", "image_url": image}]))
        assert read == checked(BodyMessage("user", (FILE,)))


CASES: list[tuple[str, Any, str | None]] = [
    ("not an object", [], None),
    ("a string", "hello", None),
    ("null", None, None),
    ("no model", {"messages": HELLO}, "model"),
    ("model null", body(model=None), "model"),
    ("model a number", body(model=1), "model"),
    ("no messages", {"model": "m"}, "messages"),
    ("messages empty", body(messages=[]), "messages"),
    ("messages a string", body(messages="hi"), "messages"),
    ("messages an object", body(messages={}), "messages"),
    ("too many messages", body(messages=HELLO * 1025), "messages"),
    ("message a string", body(messages=["hi"]), "messages[0]"),
    ("no role", body(messages=[{"content": "x"}]), "messages[0].role"),
    ("role unknown", body(messages=[{"role": "wizard", "content": "x"}]), "messages[0].role"),
    ("role function", body(messages=[{"role": "function", "content": "x"}]), "messages[0].role"),
    ("role a list", body(messages=[{"role": [], "content": "x"}]), "messages[0].role"),
    ("no content", body(messages=[{"role": "user"}]), "messages[0].content"),
    ("content null", asked(None), "messages[0].content"),
    ("content a number", asked(1), "messages[0].content"),
    ("content without parts", asked([]), "messages[0].content"),
    (
        "second message",
        body(messages=[*HELLO, {"role": "user", "content": 1}]),
        "messages[1].content",
    ),
    ("1025 parts", asked([PICTURE] * 1025), "messages[0].content"),
    (
        "picture that is a web address",
        asked([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]),
        "messages[0].content[0].image_url",
    ),
    ("part a string", asked(["hi"]), "messages[0].content[0]"),
    ("part without type", asked([{"text": "x"}]), "messages[0].content[0].type"),
    ("part type unknown", asked([{"type": "nope"}]), "messages[0].content[0].type"),
    ("part type a list", asked([{"type": ["text"]}]), "messages[0].content[0].type"),
    ("part audio", asked([{"type": "input_audio"}]), "messages[0].content[0].type"),
    ("film without url", asked([{"type": "video_url"}]), "messages[0].content[0].video_url"),
    ("part file", asked([{"type": "file"}]), "messages[0].content[0].type"),
    ("text part without text", asked([{"type": "text"}]), "messages[0].content[0].text"),
    ("text part a number", asked([{"type": "text", "text": 1}]), "messages[0].content[0].text"),
    (
        "text part with more",
        asked([{"type": "text", "text": "", "x": 1}]),
        "messages[0].content[0].x",
    ),
    ("image part without url", asked([{"type": "image_url"}]), "messages[0].content[0].image_url"),
    (
        "image url empty object",
        asked([{"type": "image_url", "image_url": {}}]),
        "messages[0].content[0].image_url.url",
    ),
    (
        "image url a number",
        asked([{"type": "image_url", "image_url": {"url": 1}}]),
        "messages[0].content[0].image_url.url",
    ),
    (
        "image detail tiny",
        asked([{"type": "image_url", "image_url": {"url": "data:,", "detail": "tiny"}}]),
        "messages[0].content[0].image_url.detail",
    ),
    (
        "picture in a system message",
        body(messages=[{"role": "system", "content": [PICTURE]}]),
        "messages[0].content[0]",
    ),
    ("tool calls", asked("x", tool_calls=[{"id": "1"}]), "messages[0].tool_calls[0].function"),
    ("tool call id", asked("x", tool_call_id="1"), "messages[0].tool_call_id"),
    ("message field unknown", asked("x", colour="red"), "messages[0].colour"),
    ("message name a number", asked("x", name=1), "messages[0].name"),
    ("max_tokens 0", body(max_tokens=0), "max_tokens"),
    ("max_tokens negative", body(max_tokens=-2), "max_tokens"),
    ("max_tokens a string", body(max_tokens="5"), "max_tokens"),
    ("max_tokens true", body(max_tokens=True), "max_tokens"),
    ("max_tokens a fraction", body(max_tokens=1.5), "max_tokens"),
    ("max_tokens huge", body(max_tokens=10**12), "max_tokens"),
    ("limits disagree", body(max_tokens=5, max_completion_tokens=6), "max_completion_tokens"),
    ("temperature negative", body(temperature=-0.1), "temperature"),
    ("temperature 2.1", body(temperature=2.1), "temperature"),
    ("temperature a string", body(temperature="hot"), "temperature"),
    ("temperature NaN", body(temperature=float("nan")), "temperature"),
    ("temperature infinite", body(temperature=float("inf")), "temperature"),
    ("top_p 0", body(top_p=0), "top_p"),
    ("top_p 1.1", body(top_p=1.1), "top_p"),
    ("top_k -2", body(top_k=-2), "top_k"),
    ("top_k a fraction", body(top_k=0.5), "top_k"),
    ("repetition_penalty 0", body(repetition_penalty=0), "repetition_penalty"),
    ("presence_penalty 3", body(presence_penalty=3), "presence_penalty"),
    ("frequency_penalty -3", body(frequency_penalty=-3), "frequency_penalty"),
    ("frequency_penalty true", body(frequency_penalty=True), "frequency_penalty"),
    ("seed -2", body(seed=-2), "seed"),
    ("seed 2^53", body(seed=2**53), "seed"),
    ("seed 2^64", body(seed=2.0**64), "seed"),
    ("seed a fraction", body(seed=0.5), "seed"),
    ("n 0", body(n=0), "n"),
    ("n a million", body(n=10**6), "n"),
    ("stop a number", body(stop=1), "stop"),
    ("stop of numbers", body(stop=["a", 1]), "stop[1]"),
    ("stop empty string", body(stop=""), "stop"),
    ("stop 17 strings", body(stop=["x"] * 17), "stop"),
    ("stop too long", body(stop="x" * 1025), "stop"),
    ("ignore_eos 1", body(ignore_eos=1), "ignore_eos"),
    ("stream a string", body(stream="true"), "stream"),
    ("stream_options a list", body(stream=True, stream_options=[]), "stream_options"),
    (
        "stream_options unknown",
        body(stream=True, stream_options={"x": 1}),
        "stream_options.x",
    ),
    (
        "include_usage a number",
        body(stream=True, stream_options={"include_usage": 1}),
        "stream_options.include_usage",
    ),
    ("user a number", body(user=1), "user"),
    ("metadata a list", body(metadata=[]), "metadata"),
    ("store a string", body(store="yes"), "store"),
    ("tools", body(tools=[{"type": "function"}]), "tools[0].function"),
    ("tool_choice required", body(tool_choice="required"), "tool_choice"),
    ("parallel_tool_calls", body(parallel_tool_calls="no"), "parallel_tool_calls"),
    ("functions", body(functions=[{}]), "functions"),
    ("function_call", body(function_call={"name": "x"}), "function_call"),
    ("logprobs 0", body(logprobs=0), "logprobs"),
    ("top_logprobs alone", body(top_logprobs=3), "top_logprobs"),
    ("logit_bias a list", body(logit_bias=[[5, 1]]), "logit_bias"),
    ("min_p 2", body(min_p=2), "min_p"),
    ("min_tokens -1", body(min_tokens=-1), "min_tokens"),
    ("stop_token_ids a number", body(stop_token_ids=5), "stop_token_ids"),
    ("include_stop 1", body(include_stop_str_in_output=1), "include_stop_str_in_output"),
    ("skip_special_tokens 0", body(skip_special_tokens=0), "skip_special_tokens"),
    ("token ids alone", body(return_tokens_as_token_ids=True), "return_tokens_as_token_ids"),
    ("chat_template_kwargs a list", body(chat_template_kwargs=[]), "chat_template_kwargs"),
    ("add_generation_prompt 1", body(add_generation_prompt=1), "add_generation_prompt"),
    ("continue of a user", body(continue_final_message=True), "continue_final_message"),
    ("modalities", body(modalities=["text", "audio"]), "modalities"),
    ("audio", body(audio={"voice": "alloy"}), "audio"),
    ("loras", body(loras="a"), "loras"),
    ("prediction", body(prediction={}), "prediction"),
    ("reasoning_effort", body(reasoning_effort="high"), "reasoning_effort"),
    ("verbosity", body(verbosity="low"), "verbosity"),
    ("web_search_options", body(web_search_options={}), "web_search_options"),
    ("json_schema", body(json_schema=[]), "json_schema"),
    (
        "response_format without a schema",
        body(response_format={"type": "json_schema", "json_schema": {}}),
        "response_format.json_schema.schema",
    ),
    ("response_format without type", body(response_format={}), "response_format.type"),
    ("response_format a string", body(response_format="text"), "response_format"),
    ("min_pixels 0", body(min_pixels=0), "min_pixels"),
    ("coordinates of no kind", body(coordinates="pixels"), "coordinates"),
    ("max_pixels a string", body(max_pixels="784"), "max_pixels"),
    ("max_pixels huge", body(max_pixels=2**31), "max_pixels"),
    (
        "max_pixels of a part",
        asked([PICTURE | {"max_pixels": 0}]),
        "messages[0].content[0].max_pixels",
    ),
    ("processor a list", body(mm_processor_kwargs=[]), "mm_processor_kwargs"),
    ("processor unknown", body(mm_processor_kwargs={"crop": 2}), "mm_processor_kwargs.crop"),
    ("media a list", body(media_io_kwargs=[]), "media_io_kwargs"),
    (
        "processor edge unknown",
        body(mm_processor_kwargs={"size": {"height": 28}}),
        "mm_processor_kwargs.size.height",
    ),
    (
        "pixels disagree",
        body(max_pixels=5, mm_processor_kwargs={"max_pixels": 6}),
        "mm_processor_kwargs",
    ),
    (
        "pixels disagree inside",
        body(mm_processor_kwargs={"min_pixels": 5, "size": {"shortest_edge": 6}}),
        "mm_processor_kwargs",
    ),
    ("unknown", body(colour="red"), "colour"),
    ("unknown and null", body(colour=None), "colour"),
    ("misspelt", body(max_token=3), "max_token"),
    ("unknown of a megabyte", body(**{"x" * 10**6: 1}), "x" * 64),
    ("unknown with NUL", body(**{"a\0b": 1}), "a\0b"),
]


@pytest.mark.parametrize(("given", "param"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_wrong_body_is_refused_and_the_field_named(given: Any, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_chat_body(given)
    assert refused.value.param == param
    message = refused.value.message
    assert len(message) < 300
    assert message.isprintable()
    if param is not None:
        assert ascii(param)[1:-1] in message


def test_every_field_that_can_be_refused_has_a_case() -> None:
    dropped = {"safety_identifier", "service_tier", "prompt_cache_key", "prompt_cache_retention"}
    dropped |= {"prompt_cache_options", "moderation"}
    tried = {str(param).split(".")[0].split("[")[0] for _, _, param in CASES}
    assert set(OWN_FIELDS) - dropped - set(FORMAT_FIELDS) <= tried  # these have tests of their own


def test_the_refusal_of_a_misspelt_field_suggests_the_right_name() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'max_tokens'"):
        read_chat_body(body(max_token=3))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
PART = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "image_url"]) | JSON,
        "text": JSON,
        "image_url": JSON,
    },
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "system", "assistant"]) | JSON,
        "content": st.text(max_size=4) | st.lists(PART | JSON, max_size=3) | JSON,
    },
)
BODY = st.fixed_dictionaries(
    {"model": st.just("m") | JSON, "messages": st.lists(MESSAGE, max_size=3) | JSON},
    optional={name: JSON for name in FIELDS if name not in ("model", "messages")},
)


ACCEPTED = st.fixed_dictionaries(
    {
        "model": st.just("m"),
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.just("user"), "content": st.text(max_size=4)}),
            min_size=1,
            max_size=3,
        ),
    },
    optional={
        "max_tokens": st.integers(1, 99),
        "temperature": st.floats(0, 2),
        "seed": st.integers(0, 99),
        "stop": st.lists(st.text(min_size=1, max_size=4), max_size=3),
        "n": st.integers(1, 16),
        "stream": st.booleans(),
    },
)
PLAIN = read_chat_body({"model": "m", "messages": HELLO})
READ_OTHERWISE = {"tools", "loras"} | {each.name for each in fields(ChatBody)} - FIELDS.keys()
"""Fields of the checked body that are not what a caller sends."""


def as_json(read: ChatBody) -> dict[str, Any]:
    """The checked body as a caller would send it, without `READ_OTHERWISE`."""
    given = {name: value for name, value in asdict(read).items() if value is not None}
    sent = {name: value for name, value in given.items() if name not in READ_OTHERWISE}
    return sent | {
        "stop": list(read.stop),
        "messages": [
            {"role": message.role, "content": [_part_as_json(part) for part in message.parts]}
            for message in read.messages
        ],
    }


def _part_as_json(part: str | PicturePart) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = f"data:image/png;base64,{b64encode(part.file).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


@settings(max_examples=150)
@given(ACCEPTED | BODY | JSON)
def test_any_json_is_read_or_refused_and_a_checked_body_reads_as_itself(any_body: Any) -> None:
    try:
        read = read_chat_body(any_body)
    except InvalidRequest:
        return
    usual = {name: getattr(PLAIN, name) for name in READ_OTHERWISE}
    assert read_chat_body(as_json(read)) == replace(read, **usual)
