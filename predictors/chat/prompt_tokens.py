"""Tokens of prompts: of rendered conversations, and of prompts that no chat template surrounds.

A control token in a text is read as plain text, as in messages. Ids may be of control tokens, but
of none that stands for a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from predictors.chat.model import ChatModel
from predictors.chat.prompt_texts import PromptTexts
from predictors.errors import InvalidRequest, PromptTooLong


class PromptTokens:
    """Reads prompts for one model. Any thread."""

    def __init__(
        self, model: ChatModel, texts: PromptTexts, max_context: Callable[[], int]
    ) -> None:
        self._texts = texts
        self._max_context = max_context
        tokens = (model.image_token, model.video_token)
        self._of_pictures = {each for each in tokens if each is not None}
        self._tokenizer = model.tokenizer
        self._size = model.tokenizer.get_vocab_size()
        self._longest_token = max(map(len, model.tokenizer.get_vocab()))

    def check_length(self, num_chars: int) -> None:
        """Refuse a text that can't fit before it is tokenised, which could take seconds.

        A token has at most the characters of the longest one, and composing characters leaves at
        least a third of a text.
        """
        least = num_chars // (3 * self._longest_token)
        if least >= self._max_context():
            raise PromptTooLong.of(self._max_context(), f"at least {least}")

    def encode(self, pieces: Sequence[str]) -> list[int]:
        """The tokens of rendered pieces, control tokens among them."""
        # the tokenizer itself, not its wrapper: the wrapper sets state and is not thread-safe. As a
        # batch, since `encode` holds the interpreter's lock: three seconds for four megabytes
        encoded = self._tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
        if len(encoded) == 1:  # no text of the caller's was cut
            only: list[int] = encoded[0].ids
            return only
        return [token for piece in encoded for token in piece.ids]

    def of_text(self, text: str) -> list[int]:
        """The tokens of a caller's text alone."""
        self.check_length(len(text))
        return self.encode(self._texts.plain_pieces(text))

    def of_raw(self, prompt: str | Sequence[int]) -> list[int]:
        """Raises `InvalidRequest` for ids that the model does not have, and for no token at all."""
        if isinstance(prompt, str):
            found = self.of_text(prompt)
        else:
            self.check_ids(prompt)
            found = list(prompt)
        if not found:
            raise InvalidRequest("prompt has no tokens; at least one is needed", param="prompt")
        if of_pictures := self._of_pictures.intersection(found):
            message = (
                f"prompt holds token {min(of_pictures)}, which stands for pictures; send these"
            )
            raise InvalidRequest(f"{message} to /v1/chat/completions", param="prompt")
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
