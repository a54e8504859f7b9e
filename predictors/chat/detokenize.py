"""Turns a growing answer's tokens into text, up to the first stop string.

Tokens are bytes of UTF-8, so a character may be spread over several. Whole characters are passed on
at once; parts of one, and text that may begin a stop string, are held back. The text does not
depend on how tokens are grouped into chunks.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from predictors.chat.request import ChatDelta, LastDelta, PromptReuse, PromptSize

NO_REUSE = PromptReuse()


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, with which byte-level BPE writes its tokens."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in kept]
    return {chr(b): b for b in kept} | {chr(256 + i): b for i, b in enumerate(moved)}


class Vocabulary:
    """The bytes of each token of a byte-level BPE; control tokens have none. `size` is the number
    of logits, which may be more than the tokenizer has tokens. Thread-safe."""

    def __init__(self, tokenizer: Any, size: int = 0) -> None:
        self.size = size or tokenizer.get_vocab_size()
        self._tokenizer = tokenizer
        self._alphabet = byte_alphabet()
        added = tokenizer.get_added_tokens_decoder()
        self._control = {i for i, token in added.items() if token.special}
        self.bytes_of: Callable[[int], bytes] = lru_cache(maxsize=2**18)(self._bytes_of)

    def written(self, token: int) -> bytes:
        """The bytes of a token; those of a control token are its name."""
        if token in self._control:
            return str(self._tokenizer.id_to_token(token)).encode()
        return self.bytes_of(token)

    def _bytes_of(self, token: int) -> bytes:
        written = None if token in self._control else self._tokenizer.id_to_token(token)
        if written is None:  # a control token, or an id beyond the vocabulary that pads the head
            return b""
        if all(c in self._alphabet for c in written):
            return bytes(self._alphabet[c] for c in written)
        return str(written).encode()  # an added token, written as it is


class StopFinder:
    """Passes text on up to the first stop string, or with it where `is_shown`; text that may begin
    one is held back.

    The match that ends first wins, and among those the longest, whatever the chunks are.
    """

    def __init__(self, stops: Sequence[str], *, is_shown: bool = False) -> None:
        self._stops = tuple(stops)
        self._is_shown = is_shown
        self._held = ""
        self.found = False
        self.match: str | None = None
        """The stop string that was found."""

    def feed(self, text: str) -> str:
        """The text that can be passed on now; empty once `found`."""
        if self.found:
            return ""
        if not self._stops:  # most requests have none, and this runs for every token
            return text
        text = self._held + text
        match = self._first_match(text)
        if match is not None:
            end, start = match
            self.found, self.match, self._held = True, text[start:end], ""
            return text[: end if self._is_shown else start]
        keep = self._may_begin(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, int] | None:
        """Its end and its beginning."""
        found = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        return min(found, default=None)

    def _may_begin(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-size:]) for s in self._stops):
                return size
        return 0


class AnswerReader:
    """Adds text to the engine's deltas; `done` once a stop string came. One per job; one thread at
    a time.

    An incomplete character at the end of the answer is dropped. `observe` is called at the end with
    the seconds spent here. The last one gets `pictures`, and what the engine wrote into `reuse`.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stops: Sequence[str],
        observe: Callable[[float], None] = lambda _: None,
        pictures: tuple[PromptSize, ...] = (),
        reuse: PromptReuse = NO_REUSE,
    ) -> None:
        self._pictures = pictures
        self._reuse = reuse
        self._bytes_of = vocabulary.bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopFinder(stops)
        self.may_end_early = bool(stops)
        """A stop string may end the answer before the engine does."""
        self._observe = observe
        self._seconds = 0.0
        self._unsent: tuple[int, ...] = ()

    @property
    def done(self) -> bool:
        """True once a stop string ended the answer; the engine does not know yet."""
        return self._stops.found

    def feed(self, chunk: ChatDelta) -> list[ChatDelta]:
        """The delta with its text; nothing while there is no text to pass on."""
        started = time.perf_counter()
        raw = b"".join(map(self._bytes_of, chunk.tokens))
        text = self._stops.feed(self._decoder.decode(raw))
        reason = "stop" if self._stops.found else chunk.finish_reason
        if reason is not None:
            text += self._stops.flush()
        self._seconds += time.perf_counter() - started
        self._unsent += chunk.tokens
        if reason is not None:
            self._observe(self._seconds)
        elif not text:
            return []
        tokens, self._unsent = self._unsent, ()
        prompt, made = chunk.prompt_tokens, chunk.completion_tokens
        if reason is None:  # `dataclasses.replace` takes three times as long, for every token
            return [ChatDelta(tokens, prompt, made, text)]
        return [
            LastDelta(
                tokens, prompt, made, text, reason, self._pictures,
                cached_tokens=self._reuse.cached_tokens, stop_text=self._stops.match,
            )
        ]  # fmt: skip
