"""Tokens of prompts that no chat template surrounds: a text, or token ids as the caller chose them.

A control token in a text is read as plain text, as in messages. Ids may be of control tokens, but
of none that stands for a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from predictors.chat.model import ChatModel
from predictors.errors import InvalidRequest


class RawPrompts:
    """Reads prompts for one model. Any thread."""

    def __init__(self, model: ChatModel, encode: Callable[[str], list[int]]) -> None:
        """`encode` makes tokens of a caller's text, and refuses one that can't fit."""
        self._encode = encode
        self._image_token = model.image_token
        self._tokenizer = model.tokenizer
        self._size = model.tokenizer.get_vocab_size()

    def tokens_of(self, prompt: str | Sequence[int]) -> list[int]:
        """Raises `InvalidRequest` for ids that the model does not have, and for no token at all."""
        if isinstance(prompt, str):
            found = self._encode(prompt)
        else:
            self.check_ids(prompt)
            found = list(prompt)
        if not found:
            raise InvalidRequest("prompt has no tokens; at least one is needed", param="prompt")
        if self._image_token in found:
            message = f"prompt holds token {self._image_token}, which stands for a picture"
            raise InvalidRequest(
                f"{message}; send pictures to /v1/chat/completions", param="prompt"
            )
        return found

    def check_ids(self, ids: Sequence[int], where: str = "prompt") -> None:
        highest = max(ids, default=0)
        if highest >= self._size:
            message = f"{where} holds token id {highest}; the model's are 0 to {self._size - 1}"
            raise InvalidRequest(message, param=where)

    def text_of(self, ids: Sequence[int], where: str) -> str:
        """The text of tokens, control tokens as they are written."""
        self.check_ids(ids, where)
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def written(self, ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary writes it."""
        return [self._tokenizer.id_to_token(each) or "" for each in ids]
