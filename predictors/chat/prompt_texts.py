"""Writes conversations by the checkpoint's chat template, with callers' texts as plain text."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Sequence

from predictors.chat.model import ChatModel
from predictors.chat.placing import written_films
from predictors.chat.request import Message, Picture, PromptOptions
from predictors.chat.template_options import render
from predictors.chat.tools.tag_reader import OPENING
from predictors.chat.tools.tool_prompts import TAGS, ToolPrompts
from predictors.errors import InvalidRequest
from predictors.protocol.openai.tool_fields import OfferedTools


class PromptTexts:
    """The texts of one model's prompts. Any thread.

    A control token in a caller's text is cut in two, so that the tokenizer reads it as plain text.
    Where there are tools, their tags are cut as well.
    """

    def __init__(self, model: ChatModel) -> None:
        self._model = model
        self._break = f"\ue000{secrets.token_hex(8)}\ue001"
        added = model.tokenizer.get_added_tokens_decoder().values()
        control = [token.content for token in added if token.special]
        self._control = re.compile("|".join(map(re.escape, control)) or r"(?!)")
        self._control_or_tag = re.compile("|".join(map(re.escape, (*control, *TAGS))))
        self.tools = ToolPrompts(model.render, self._break, hides_tags=OPENING in control)

    def rendered(
        self,
        messages: Sequence[Message],
        options: PromptOptions,
        tools: OfferedTools | None,
        films: Sequence[str] = (),
    ) -> list[str]:
        """The conversation in pieces, which are tokenised one by one, with `films` in the places of
        its films. Raises `InvalidRequest`."""
        if tools is None and not _has_calls(messages):
            turns = [{"role": m.role, "content": _content(m, self._plain)} for m in messages]
            written = render(self._model, turns, options, self._plain)
        else:
            plain = self._plain_with_tags
            contents = [_content(message, plain) or "" for message in messages]
            turns_, offer = self.tools.write(messages, contents, tools, plain)
            written = render(self._model, turns_, options, plain, offer)
        if films:
            written = written_films(written, films)
        return written.split(self._break)

    def plain_pieces(self, text: str) -> list[str]:
        """A caller's text alone, in such pieces. Raises `InvalidRequest`."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("prompt holds half a surrogate pair", param="prompt") from error
        return self._plain(text).split(self._break)

    def _plain(self, text: str) -> str:
        return self._control.sub(self._cut, text)

    def _plain_with_tags(self, text: str) -> str:
        return self._control_or_tag.sub(self._cut, text)

    def _cut(self, found: re.Match[str]) -> str:
        return found[0][0] + self._break + found[0][1:]


def _has_calls(messages: Sequence[Message]) -> bool:
    """True for a conversation with calls or their answers."""
    for message in messages:  # noqa: SIM110 - a generator costs calls for every message
        if message.calls or message.call_id is not None:
            return True
    return False


def _content(message: Message, plain: Callable[[str], str]) -> str | list[dict[str, str]]:
    """The parts as templates take them. Adjacent texts are joined first, so that two halves can't
    form a control token."""
    texts = [part for part in message.parts if isinstance(part, str)]
    if texts and len(texts) == len(message.parts):
        return plain("".join(texts))
    parts: list[dict[str, str]] = []
    for is_text, run in itertools.groupby(message.parts, lambda part: isinstance(part, str)):
        if is_text:
            parts.append({"type": "text", "text": plain("".join(map(str, run)))})
        else:
            parts += [{"type": "image" if isinstance(p, Picture) else "video"} for p in run]
    return parts
