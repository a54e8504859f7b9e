"""The chat template under a request's own options: the variables that may be set, and the rendering
of a conversation with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta

from predictors.chat.chat_template import template_environment
from predictors.chat.model import ChatModel
from predictors.chat.request import USUAL_PROMPT, PromptOptions
from predictors.errors import InvalidRequest
from predictors.protocol.openai.fields import MAX_NAME
from predictors.protocol.openai.reasoning_fields import always_reasons
from predictors.protocol.openai.template_fields import AS_USUAL, TemplateFields

OWN_FIELDS = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
)
"""Variables that come from fields of a request."""
RENDERING = frozenset(
    (
        *("conversation", "chat_template", "tokenize", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
        *("processor_kwargs", "load_audio_from_video", "sanitize_control_tokens"),
    )
)
"""Names that are arguments of transformers' `apply_chat_template`, and not variables."""
NOTHING: Mapping[str, Any] = {}
REASONS = "enable_thinking"
"""The variable of templates of models that may reason or not. Of other models it is only taken at
what they do anyway."""


def own_variables(template: str) -> frozenset[str]:
    """The variables that a template reads and that a caller may set: not those of the request's
    own fields, and no control tokens."""
    environment = template_environment()
    try:
        read = meta.find_undeclared_variables(environment.parse(template))
    except TemplateSyntaxError:  # `check_template` says so
        return frozenset()
    return frozenset(
        name for name in read - OWN_FIELDS - RENDERING if not name.endswith(("_token", "_tokens"))
    )


def prompt_options(
    asked: TemplateFields, known: frozenset[str], *, opens_thinking: bool = False
) -> PromptOptions:
    """Raises `InvalidRequest` for variables that the template does not read: they would change
    nothing. `opens_thinking` is that of `ChatModel`."""
    if asked == AS_USUAL:
        return USUAL_PROMPT
    given: dict[str, Any] = json.loads(asked.chat_template_kwargs)
    used = {}
    for name, value in given.items():
        if value is None:  # as in every other field: absent
            continue
        if name in known:
            used[name] = value
        elif name != REASONS or value != opens_thinking:
            param = f"chat_template_kwargs.{name[:MAX_NAME]}"
            if name == REASONS and opens_thinking:
                raise always_reasons(param)
            reads = ", ".join(sorted(known)) or "none"
            problem = f"the model's chat template does not read it; it reads {reads}"
            raise InvalidRequest(f"{param!a} is not supported: {problem}", param=param)
    continues = asked.continue_final_message
    opens = asked.add_generation_prompt
    return PromptOptions(
        variables=json.dumps(used, ensure_ascii=False, sort_keys=True),
        opens_answer=not continues if opens is None else opens,
        continues_last=continues,
    )


def render(
    model: ChatModel,
    turns: Sequence[Mapping[str, Any]],
    options: PromptOptions,
    plain: Callable[[str], str],
    offer: Mapping[str, Any] = NOTHING,
) -> str:
    """The conversation as the template writes it. `plain` makes plain text of a caller's text;
    `offer` are the template's options for tools.

    Raises `InvalidRequest` for messages or variables that the template does not take.
    """
    if options == USUAL_PROMPT and not offer:
        try:
            return _encodable(model.render(turns))
        except TemplateError as error:
            message = "the model's chat template does not take these messages"
            raise InvalidRequest(message, param="messages") from error
    variables = plain_values(json.loads(options.variables), plain)
    given: dict[str, Any] = {**offer, "add_generation_prompt": options.opens_answer}
    if options.continues_last:
        given["continue_final_message"] = True
    try:
        return _encodable(model.render(turns, {**variables, **given}))
    except InvalidRequest:
        raise
    except Exception as error:  # templates compute with a caller's values: anything is raised
        message, param = "the model's chat template does not take these messages", "messages"
        if variables:
            message, param = f"{message} with these variables", "chat_template_kwargs"
        elif options.continues_last:
            message = "the model's chat template can't go on with the last message"
            param = "continue_final_message"
        raise InvalidRequest(message, param=param) from error


def _encodable(rendered: str) -> str:
    try:
        rendered.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("the text holds half a surrogate pair") from error
    return rendered


def plain_values(value: Any, plain: Callable[[str], str]) -> Any:
    """A JSON value whose texts can't form control tokens."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [plain_values(each, plain) for each in value]
    if isinstance(value, dict):
        return {plain(name): plain_values(each, plain) for name, each in value.items()}
    return value
