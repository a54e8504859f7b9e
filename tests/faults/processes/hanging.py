"""The command line's server, word for word, whose stages hang where a text says so: `hangs in
tokenizer` for the preparation of both models, `hangs in step` for the steps of both."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

WORDS = "hangs in"


def hang() -> None:
    threading.Event().wait()


def hang_in_tokenizers() -> None:
    from predictors.chat.inputs import ChatPreparer
    from predictors.diffusion.inputs import Preparer

    tokens_of, prepare = ChatPreparer.tokens_of, Preparer.prepare

    def hanging_tokens(self: Any, messages: Sequence[Any], *options: Any) -> list[int]:
        if any(f"{WORDS} tokenizer" in part for m in messages for part in m.parts):
            hang()
        return tokens_of(self, messages, *options)

    def hanging_prepare(self: Any, request: Any) -> Any:
        if f"{WORDS} tokenizer" in request.prompt:
            hang()
        return prepare(self, request)

    ChatPreparer.tokens_of = hanging_tokens  # type: ignore[method-assign]
    Preparer.prepare = hanging_prepare  # type: ignore[method-assign]


def hang_in_steps() -> None:
    from predictors.diffusion.engine import DiffusionEngine

    step = DiffusionEngine.step

    def hanging_step(self: Any, jobs: Sequence[Any]) -> None:
        if any(f"{WORDS} step" in job.work.request.prompt for job in jobs):
            hang()
        step(self, jobs)

    DiffusionEngine.step = hanging_step  # type: ignore[method-assign]


if __name__ == "__main__":
    from predictors.__main__ import main

    hang_in_tokenizers()
    hang_in_steps()
    sys.exit(main())
