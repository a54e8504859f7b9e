"""The tokenizer of a chat folder: built as transformers' `Qwen2Tokenizer` builds it, or by
`AutoTokenizer` where a folder has settings or files that only transformers reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from predictors.compute.checkpoint.folder import SPECIAL_TOKENS, check_texts, read_if_there, reading
from predictors.compute.checkpoint.tokenizer_files import (
    SETTINGS,
    Special,
    StoredVocabulary,
    TokenizerFamily,
    read_plain,
)

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PLAIN_CLASSES = (None, "Qwen2Tokenizer", "Qwen2TokenizerFast")
"""Values of `tokenizer_class` that are this class in transformers."""


@dataclass(frozen=True, slots=True)
class ChatTokenizer:
    """`tokenizer` is a `tokenizers.Tokenizer`; templates may use `special` by name."""

    tokenizer: Any
    special: Mapping[str, str]


def _build(stored: StoredVocabulary, _: Special) -> Tokenizer:
    tokenizer = Tokenizer(
        BPE(
            vocab=stored.vocabulary,
            merges=stored.merges,
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
            byte_fallback=False,
        )
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


END = "<|endoftext|>"
QWEN = TokenizerFamily(
    "BPE",
    dict.fromkeys(("unk_token", "eos_token", "pad_token"), END),
    _build,
    is_registered=True,
)


def read_chat_tokenizer(checkpoint: Path) -> ChatTokenizer:
    """Raises `EngineFailed` for files that can't be read."""
    with reading("the tokenizer"):
        settings = read_if_there(checkpoint, SETTINGS)
        check_texts(settings, SETTINGS, SPECIAL_TOKENS)
        if settings.get("tokenizer_class") in PLAIN_CLASSES:
            found = read_plain(checkpoint, QWEN)
            if found is not None:
                return ChatTokenizer(found.tokenizer, found.special)
        from transformers import AutoTokenizer  # takes seconds, and few folders need it

        theirs: Any = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
        special = {name: str(token) for name, token in theirs.special_tokens_map.items()}
        return ChatTokenizer(theirs.backend_tokenizer, special)
