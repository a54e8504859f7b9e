"""Renders conversations by a checkpoint's chat template with Jinja's sandbox, as transformers'
`apply_chat_template` does, whose import takes seconds.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateError, nodes, pass_eval_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MARK = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """Compiled once, at its first use. Any thread. `special` are tokens that it may use by name."""

    def __init__(
        self,
        text: str | None,
        special: Mapping[str, str],
        kind: type[ImmutableSandboxedEnvironment] = ImmutableSandboxedEnvironment,
    ) -> None:
        self.text, self._special, self._kind = text, special, kind

    @cached_property
    def _globals(self) -> dict[str, Any]:
        return dict(self._compiled.globals)

    @cached_property
    def _compiled(self) -> Template:
        if self.text is None:
            raise TemplateError("the checkpoint has no chat template")
        return template_environment(self._kind).from_string(self.text)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The conversation as text. With `continue_final_message` it ends with the last message's
        own text. Raises `jinja2.TemplateError`, `ValueError`, and what templates raise."""
        if not messages:
            raise ValueError("a conversation needs a message")
        if continue_final_message and add_generation_prompt:
            raise ValueError("an answer is opened, or the last message goes on: not both")
        compiled, final = self._compiled, ""
        if continue_final_message:
            messages = copy.deepcopy(list(messages))
            final = _mark_end(messages[-1], self.text or "")
        values = {
            **self._globals,
            "messages": messages,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
            **self._special,
            **variables,
        }
        # `compiled.render` would copy the globals, name by name, each time
        rendered = "".join(compiled.root_render_func(compiled.new_context(values, shared=True)))
        return _cut_at_mark(rendered, final) if continue_final_message else rendered


def _mark_end(message: Any, template: str) -> str:
    """Puts `MARK` behind the last text of a message. Returns that text without it."""
    content = message.get("content")
    if content is None or "content" not in template:
        raise ValueError("the final message has no content that the template reads")
    if not isinstance(content, list | tuple):
        message["content"] = content + MARK
        return str(content)
    for block in reversed(content):
        if "text" in block:
            final = str(block["text"])
            block["text"] = final + MARK
            return final
    raise ValueError("the final message has no text")


def _cut_at_mark(rendered: str, final: str) -> str:
    if final.strip() not in rendered or MARK.strip() not in rendered:
        raise ValueError("the template does not write the final message")
    place = rendered.rindex(MARK.strip())
    is_whole = rendered[place : place + len(MARK)] == MARK
    return rendered[:place] if is_whole else rendered[:place].rstrip()  # it trims messages


class GenerationBlock(Extension):
    """`{% generation %}`, with which templates mark answers for training: its content as it is, in
    a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _content(self, context: nodes.EvalContext, caller: Callable[[], str]) -> str:
        return caller()


def template_environment(
    kind: type[ImmutableSandboxedEnvironment] = ImmutableSandboxedEnvironment,
) -> ImmutableSandboxedEnvironment:
    """With transformers' options, filters and functions."""
    made = kind(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise TemplateError(message)
