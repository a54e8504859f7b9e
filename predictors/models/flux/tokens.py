"""Checks that the tokenizers of a FLUX.1 folder fit to its text encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from predictors.compute.checkpoint.folder import is_real, shown
from predictors.errors import EngineFailed

if TYPE_CHECKING:
    from predictors.models.flux.prompt_tokenizers import PromptTokenizer

OLD_END_TOKEN = 2  # of configs before transformers' PR 24773: the last token is the largest id
PROBE = "a red circle above 2 blue squares"


def check_clip_tokenizer(tokenizer: PromptTokenizer, vocab: int, positions: int, end: Any) -> None:
    """Raise `EngineFailed` for a tokenizer that does not fit to CLIP's vocabulary size, number of
    positions, and end token, at whose first place CLIP reads its pooled state."""
    length = tokenizer.model_max_length
    if not is_real(length) or not 2 < length <= positions:
        raise EngineFailed(
            "tokenizer/tokenizer_config.json: model_max_length is missing or more than the "
            f"{positions} positions of text_encoder"
        )
    _check(tokenizer, "tokenizer", vocab)
    largest = max(tokenizer.get_vocab().values())  # the end token of old configs
    if tokenizer.eos_token_id != (largest if end == OLD_END_TOKEN else end):
        raise EngineFailed(
            f"text_encoder/config.json: eos_token_id is {shown(end)}, the tokenizer's end token "
            f"{tokenizer.eos_token_id}: the prompt would be read at another place"
        )


def check_t5_tokenizer(tokenizer: PromptTokenizer, vocab: int) -> None:
    """Raise `EngineFailed` for a tokenizer that does not fit to T5's vocabulary size."""
    length = tokenizer.model_max_length
    if not is_real(length) or not length > 1:
        raise EngineFailed("tokenizer_2/tokenizer_config.json: model_max_length is no length")
    _check(tokenizer, "tokenizer_2", vocab)


def _check(tokenizer: PromptTokenizer, part: str, vocab: int) -> None:
    needed = {"pad_token": tokenizer.pad_token, "eos_token": tokenizer.eos_token}
    for name, token in needed.items():
        if token is None:
            raise EngineFailed(f"{part} has no {name}; fetch its tokenizer_config.json again")
    tokens = tokenizer.get_vocab()
    token, last = max(tokens.items(), key=lambda pair: pair[1], default=("", -1))
    if last >= vocab:
        raise EngineFailed(
            f"{part} has a token {shown(token)} with id {last}; its text encoder has {vocab}"
        )
    ids = tokenizer.read(PROBE)
    known = [i for i in ids if i not in tokenizer.special_ids]
    if len(known) < 2 or tokenizer.eos_token_id not in ids:
        raise EngineFailed(f"{part} reads a sentence as {len(known)} tokens; fetch it again")
