"""Fields of the log about a chat's row: sizes and counts, and its text for operators who ask."""

from __future__ import annotations

from collections.abc import Mapping

from predictors.chat.request import ChatDelta, ChatRequest
from predictors.chat.work import ChatWork


def fields_of(work: ChatWork, last: ChatDelta | None) -> Mapping[str, int | str]:
    """Sizes and counts, never a text. `last` is the delta that came last."""
    fields: dict[str, int | str] = {
        "prompt_tokens": work.num_prompt_tokens,
        "completion_tokens": 0 if last is None else last.completion_tokens,
        "pictures": len([each for each in work.pictures if each.prepared.frames == 1]),
        "max_tokens": work.max_tokens,
    }
    if work.films:
        fields["films"] = len(work.films)
    if work.adapters.scales:
        fields["loras"] = work.adapters.names
    if last is not None and last.finish_reason is not None:
        fields["finish_reason"] = last.finish_reason
    return fields


def prompt_of(request: ChatRequest) -> str:
    """The texts of all messages, one message per line, without pictures; a prompt without messages
    as it is."""
    if request.raw_prompt is not None:
        return str(request.raw_prompt)
    return "\n".join(
        f"{turn.role}: {''.join(part for part in turn.parts if isinstance(part, str))}"
        for turn in request.messages
    )
