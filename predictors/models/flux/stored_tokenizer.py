"""A tokenizer of a FLUX.1 folder as its files describe it, read without transformers: enough for
the checks of `tokens`, which take transformers' tokenizers as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from predictors.compute.checkpoint.folder import (
    SPECIAL_TOKENS,
    check_texts,
    read_if_there,
    read_json,
    read_whole,
)

SETTINGS, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
NO_LENGTH = int(1e30)  # as transformers has it where none is given


@dataclass(frozen=True, slots=True)
class Encoded:
    input_ids: list[int]


class StoredTokenizer:
    """Raises `EngineFailed` or a library's error for files that can't be read. `end` and `pad` are
    the tokens that the class has where the files name none."""

    def __init__(self, folder: Path, *, end: str, pad: str) -> None:
        settings = read_if_there(folder, SETTINGS, f"{folder.name}/{SETTINGS}")
        special = read_if_there(folder, SPECIAL, f"{folder.name}/{SPECIAL}")
        check_texts(settings, f"{folder.name}/{SETTINGS}", SPECIAL_TOKENS)
        length = settings.get("model_max_length", NO_LENGTH)
        self.model_max_length = NO_LENGTH if length is None else length  # checked by `tokens`
        self.eos_token = _token("eos_token", (settings, special), end)
        self.pad_token = _token("pad_token", (settings, special), pad)
        self._tokenizer = _read_tokenizer(folder)
        added = settings.get("added_tokens_decoder")
        self._added = {
            str(token["content"]): int(i)
            for i, token in (added.items() if isinstance(added, Mapping) else ())
        }
        vocabulary = self.get_vocab()
        self.eos_token_id = vocabulary.get(self.eos_token or "")
        self.all_special_ids = [
            vocabulary.get(token or "") for token in (self.eos_token, self.pad_token)
        ]

    @property
    def has_vocabulary(self) -> bool:
        """False for sentencepiece's own format, which is not read here."""
        return self._tokenizer is not None

    def get_vocab(self) -> dict[str, int]:
        if self._tokenizer is None:
            return {}
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary | self._added

    def __call__(self, text: str) -> Encoded:
        """The tokens of a text and the end token."""
        if self._tokenizer is None:
            return Encoded([])
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return Encoded([*ids, *([] if self.eos_token_id is None else [self.eos_token_id])])


def _read_tokenizer(folder: Path) -> Any:
    """The tokenizer of `tokenizer.json`, or CLIP's of its two older files; else None."""
    where = folder.name
    if (folder / "tokenizer.json").is_file():
        raw = read_whole(folder / "tokenizer.json", f"{where}/tokenizer.json")
        return Tokenizer.from_str(raw.decode("utf-8"))
    if not (folder / "vocab.json").is_file():
        return None
    vocabulary = read_json(folder, "vocab.json", f"{where}/vocab.json")
    lines = read_whole(folder / "merges.txt", f"{where}/merges.txt").decode("utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    bpe = models.BPE(
        vocab={str(token): int(i) for token, i in vocabulary.items()},
        merges=merges,
        end_of_word_suffix="</w>",
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def _token(name: str, levels: tuple[Mapping[str, Any], ...], usual: str) -> str | None:
    for level in levels:
        if name in level:
            found = level[name]
            found = found.get("content") if isinstance(found, Mapping) else found
            return found if isinstance(found, str) else None
    return usual
