"""Options of chat templates: a template reads them, and none is a control token."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from predictors.chat.chat_template import template_environment
from predictors.chat.inputs import ChatPreparer
from predictors.chat.model import OPENS_ANSWER
from predictors.chat.request import USUAL_PROMPT, Message, Picture, PromptOptions
from predictors.chat.template_options import (
    OWN_FIELDS,
    RENDERING,
    own_variables,
    prompt_options,
    render,
)
from predictors.errors import InvalidRequest, PromptTooLong
from predictors.protocol.openai.template_fields import AS_USUAL, TemplateFields
from tests.chat.reference import Reference
from tests.chat.room import Room

TURNS = [{"role": "user", "content": "hi"}]


class Templated:
    """A model that renders a text by Jinja."""

    def __init__(self, template: str) -> None:
        self._template = template_environment().from_string(template)

    def render(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] = OPENS_ANSWER
    ) -> str:
        return self._template.render(messages=messages, **options)


def rendered(template: str, **variables: Any) -> str:
    options = PromptOptions(variables=json.dumps(variables))
    plain = lambda text: text.replace("<|im_end|>", "<_|im_end|>")  # noqa: E731
    return render(Templated(template), TURNS, options, plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages }}{{ tools }}{{ documents }}{{ add_generation_prompt }}", set()),
        ("{{ bos_token }}{{ additional_special_tokens }}{{ raise_exception('x') }}", set()),
        ("{% set n = namespace(v=1) %}{% for m in messages %}{{ m }}{{ loop.index }}{% endfor %}",
         set()),
        ("{% if add_vision_id %}x{% endif %}", {"add_vision_id"}),
        ("{% if mode is defined and mode == 'x' %}{% endif %}", {"mode"}),
        ("{% set mode = mode if mode is defined else 1 %}{{ mode }}", {"mode"}),
        ("{% macro m(a) %}{{ a }}{{ style }}{% endmacro %}{{ m(1) }}", {"style"}),
        ("{{ chat_template }}{{ tokenize }}{{ padding }}{{ today }}", {"today"}),
        ("{% generation %}{{ hint | default('') }}{% endgeneration %}", {"hint"}),
        ("{% if", set()),
    ],
)  # fmt: skip
def test_a_templates_own_variables_are_found(template: str, expected: set[str]) -> None:
    assert own_variables(template) == expected


def test_no_argument_of_transformers_is_a_variable() -> None:
    arguments = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    assert arguments - {"self", "kwargs"} <= OWN_FIELDS | RENDERING


def test_the_embedded_checkpoints_template_counts_pictures_on_demand(room: Room) -> None:
    known = own_variables(room.model.template or "")
    assert known == {"add_vision_id"}
    asked = TemplateFields('{"add_vision_id": true}')
    options = prompt_options(asked, known)
    messages = [Message("user", (Picture(b""), "hi"))]
    tokenizer = room.model.tokenizer
    told = tokenizer.decode(room.inputs.tokens_of(messages, options), skip_special_tokens=False)
    assert "Picture 1: <|vision_start|>" in told
    usual = tokenizer.decode(room.inputs.tokens_of(messages), skip_special_tokens=False)
    assert told.replace("Picture 1: ", "") == usual


def test_a_usual_prompt_shares_one_value() -> None:
    assert prompt_options(AS_USUAL, frozenset()) is USUAL_PROMPT
    assert prompt_options(TemplateFields('{"enable_thinking": false}'), frozenset()) == USUAL_PROMPT
    assert prompt_options(TemplateFields('{"nothing": null}'), frozenset()) == USUAL_PROMPT


@pytest.mark.parametrize("name", ["enable_thinking", "messages", "tools", "chat_template", "nope"])
def test_a_variable_that_the_template_does_not_read_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="it reads add_vision_id") as refused:
        prompt_options(TemplateFields(json.dumps({name: True})), frozenset({"add_vision_id"}))
    assert refused.value.param == f"chat_template_kwargs.{name}"


def test_thinking_that_a_model_always_does_is_not_turned_off_in_silence() -> None:
    given = TemplateFields('{"enable_thinking": false}')
    with pytest.raises(InvalidRequest, match="enable_thinking' is not supported"):
        prompt_options(given, frozenset(), opens_thinking=True)


def test_thinking_that_a_model_always_does_may_be_asked_for() -> None:
    given = TemplateFields('{"enable_thinking": true}')
    assert prompt_options(given, frozenset(), opens_thinking=True) == USUAL_PROMPT
    with pytest.raises(InvalidRequest, match="does not read it"):
        prompt_options(given, frozenset())


def test_a_variable_that_the_template_reads_is_passed_even_if_others_ignore_it() -> None:
    given = '{"enable_thinking": false}'
    options = prompt_options(TemplateFields(given), frozenset({"enable_thinking"}))
    assert options.variables == given


def test_values_reach_the_template_without_control_tokens() -> None:
    assert rendered("{{ x }}", x="a<|im_end|>b") == "a<_|im_end|>b"
    found = rendered("{{ x | tojson }}", x=[{"k<|im_end|>": ["<|im_end|>", 1, None, True]}])
    assert found == '[{"k<_|im_end|>": ["<_|im_end|>", 1, null, true]}]'


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ x + 1 }}", "aa"),
        ("{{ 1 / x }}", 0),
        ("{{ x.a.b.c }}", {}),
        ("{{ raise_exception(x) }}", "aa"),
        ("{{ x[0](1) }}", ["aa"]),
        ("{% for i in x %}{% endfor %}", 1),
        ("{{ 'a' % x }}", "aa"),
    ],
)
def test_values_that_a_template_cant_compute_with_are_the_callers_fault(
    template: str, value: Any
) -> None:
    with pytest.raises(InvalidRequest, match="with these variables") as refused:
        rendered(template, x=value)
    assert refused.value.param == "chat_template_kwargs"
    assert "aa" not in refused.value.message


def test_a_template_that_fails_without_variables_is_no_callers_fault(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.model, "render", Templated("{{ 1 / 0 }}").render)
    with pytest.raises(ZeroDivisionError):
        room.inputs.tokens_of([Message("user", ("hi",))])


def test_a_text_that_a_template_repeats_is_bounded_before_it_is_tokenised(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Templated("{% for m in range(1000) %}{{ x * 100 }}{% endfor %}")
    monkeypatch.setattr(room.model, "render", long.render)
    options = PromptOptions(variables='{"x": "abcdefghij"}')
    with pytest.raises(PromptTooLong):
        room.inputs.tokens_of([Message("user", ("hi",))], options)


CONVERSATIONS = {
    "text": [Message("user", ("hi",)), Message("assistant", ("The shape is",))],
    "spaces": [Message("user", ("hi",)), Message("assistant", ("  The shape is ",))],
    "picture": [Message("user", (Picture(b""), "what?")), Message("assistant", ("a", " b"))],
    "its words before": [
        Message("user", ("The",)),
        Message("assistant", ("The",)),
        Message("user", ("The",)),
        Message("assistant", ("The",)),
    ],
}


@pytest.mark.parametrize("name", sorted(CONVERSATIONS))
def test_a_continued_message_is_rendered_as_by_transformers(
    room: Room, reference: Reference, name: str
) -> None:
    messages = CONVERSATIONS[name]
    found = room.inputs.tokens_of(messages, PromptOptions(opens_answer=False, continues_last=True))
    turns = [{"role": m.role, "content": _content(m)} for m in messages]
    tokenizer = reference.parts.tokenizer
    expected = tokenizer.apply_chat_template(
        turns,
        chat_template=reference.parts.chat_template,
        continue_final_message=True,
        tokenize=False,
    )
    assert found == tokenizer.encode(expected, add_special_tokens=False)
    text = "".join(part for part in messages[-1].parts if isinstance(part, str))
    assert expected.endswith(f"assistant\n{text}")


def _content(message: Message) -> str | list[dict[str, str]]:
    texts = [part for part in message.parts if isinstance(part, str)]
    if len(texts) == len(message.parts):
        return "".join(texts)
    pictures = [{"type": "image"} for _ in range(len(message.parts) - len(texts))]
    return [*pictures, {"type": "text", "text": "".join(texts)}]


def test_a_prompt_may_end_with_the_last_message(inputs: ChatPreparer) -> None:
    messages = [Message("user", ("hi",))]
    usual, short = inputs.tokens_of(messages), inputs.tokens_of(messages, NO_OPENING)
    assert usual[: len(short)] == short
    assert len(short) < len(usual)


NO_OPENING = PromptOptions(opens_answer=False)


@pytest.fixture
def inputs(room: Room) -> ChatPreparer:
    return room.inputs


def test_a_template_that_drops_the_last_message_cant_go_on_with_it(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> str:
        raise ValueError("a library's words")

    monkeypatch.setattr(room.model, "render", fails)
    with pytest.raises(InvalidRequest, match="can't go on") as refused:
        room.inputs.tokens_of(CONVERSATIONS["text"], PromptOptions(continues_last=True))
    assert refused.value.param == "continue_final_message"
    assert "library" not in refused.value.message
