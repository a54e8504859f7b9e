"""The two tokenizers of a FLUX.1 folder: built as transformers' `CLIPTokenizer` and `T5Tokenizer`
build theirs, or by these classes where a folder has settings or files that only they read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from predictors.compute.checkpoint.folder import SPECIAL_TOKENS, check_texts, read_if_there, reading
from predictors.compute.checkpoint.tokenizer_files import (
    SETTINGS,
    Special,
    StoredVocabulary,
    TokenizerFamily,
    read_plain,
)

CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
T5_EXTRA_IDS = 100
SPACE = "\u2581"  # sentencepiece's mark


@dataclass(frozen=True, slots=True)
class PromptTokenizer:
    """Not thread-safe. `tokenizer` gives the tokens of a text alone: those of `opening` go before
    them, and the end token behind."""

    tokenizer: Any
    opening: Sequence[int]
    model_max_length: Any
    """As the files have it; checked by `tokens`."""
    eos_token: str | None
    pad_token: str | None
    special_ids: frozenset[int | None]
    cuts_left: bool = False
    pads_left: bool = False

    @property
    def eos_token_id(self) -> int | None:
        return self._id_of(self.eos_token)

    def get_vocab(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self.tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    def read(self, text: str) -> list[int]:
        """All tokens of a text, with those around it."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        end = self.eos_token_id
        return [*self.opening, *ids, *([] if end is None else [end])]

    def padded(self, ids: Sequence[int], length: int) -> list[int]:
        """Exactly `length` tokens of those that `read` gives. If there are more, texts are cut and
        the tokens around them stay."""
        pad = self._id_of(self.pad_token)
        assert pad is not None  # checked by `tokens`
        too_many = max(0, len(ids) - length)
        first, last = len(self.opening), len(ids) - 1
        cut = slice(first, first + too_many) if self.cuts_left else slice(last - too_many, last)
        kept = [*ids[: cut.start], *ids[cut.stop :]]
        padding = [pad] * (length - len(kept))
        return [*padding, *kept] if self.pads_left else [*kept, *padding]

    def _id_of(self, token: str | None) -> int | None:
        found: int | None = self.tokenizer.token_to_id(token) if token is not None else None
        return found


def _build_clip(stored: StoredVocabulary, special: Special) -> Tokenizer:
    tokenizer = Tokenizer(
        BPE(
            vocab=stored.vocabulary,
            merges=stored.merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=str(special["unk_token"]),
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _build_t5(stored: StoredVocabulary, _: Special) -> Tokenizer:
    tokenizer = Tokenizer(Unigram(stored.vocabulary, unk_id=2, byte_fallback=False))
    if stored.charsmap is not None:
        tokenizer.normalizer = normalizers.Precompiled(stored.charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, "always", True)]
    )
    tokenizer.decoder = decoders.Metaspace(SPACE, "always", True)
    return tokenizer


def _t5_extra(settings: Mapping[str, Any]) -> Sequence[str]:
    count = settings.get("extra_ids", T5_EXTRA_IDS)
    return [f"<extra_id_{i}>" for i in range(count)]


END = "<|endoftext|>"
CLIP = TokenizerFamily(
    "BPE",
    dict.fromkeys(("eos_token", "unk_token", "pad_token"), END) | {"bos_token": "<|startoftext|>"},
    _build_clip,
)
T5 = TokenizerFamily(
    "Unigram",
    {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    _build_t5,
    _t5_extra,
    frozenset(("extra_ids", "add_prefix_space")),
)
NEEDED = {"CLIPTokenizer": ("bos_token", "eos_token", "unk_token"), "T5Tokenizer": ("eos_token",)}
"""Special tokens without which a class makes no tokenizer."""


def read_clip_tokenizer(folder: Path) -> PromptTokenizer:
    return _read(folder, CLIP, "CLIPTokenizer")


def read_t5_tokenizer(folder: Path) -> PromptTokenizer:
    return _read(folder, T5, "T5Tokenizer")


def _read(folder: Path, family: TokenizerFamily, name: str) -> PromptTokenizer:
    """Raises `EngineFailed` for files that can't be read."""
    with reading(f"the tokenizer in {folder.name}"):
        settings = read_if_there(folder, SETTINGS, f"{folder.name}/{SETTINGS}")
        check_texts(settings, f"{folder.name}/{SETTINGS}", SPECIAL_TOKENS)
        found = read_plain(folder, family)
        if found is None or not set(NEEDED[name]) <= set(found.special):
            return _of_transformers(folder, name)
        special, tokenizer = found.special, found.tokenizer
        first = tokenizer.token_to_id(special["bos_token"]) if family is CLIP else None
        every = (*special.values(), *found.extra)
        return PromptTokenizer(
            *(tokenizer, [] if first is None else [first], found.max_length),
            *(special.get("eos_token"), special.get("pad_token")),
            frozenset(map(tokenizer.token_to_id, every)),
        )


def _of_transformers(folder: Path, name: str) -> PromptTokenizer:
    import transformers  # takes seconds, and few folders need it

    found: Any = getattr(transformers, name).from_pretrained(folder, local_files_only=True)
    tokenizer = found.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return PromptTokenizer(
        *(tokenizer, [found.bos_token_id] if name == "CLIPTokenizer" else []),
        *(found.model_max_length, found.eos_token, found.pad_token),
        frozenset(found.all_special_ids),
        cuts_left=found.truncation_side == "left",
        pads_left=found.padding_side == "left",
    )
