"""Reads a tokenizer's files with the library `tokenizers` alone, to the tokenizer that
transformers' `TokenizersBackend` makes of them; importing transformers takes seconds.

Only settings whose meaning is known here are read: for all others `read_plain` gives None, and its
callers leave the folder to transformers' own class.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from predictors.compute.checkpoint.folder import check_file, read_if_there, read_json

SETTINGS, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
WHOLE, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
NAMES = tuple(f"{n}_token" for n in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""Of special tokens, in transformers' order."""
EXTRA = ("extra_special_tokens", "additional_special_tokens")
WITHOUT_EFFECT = frozenset(
    (
        *("tokenizer_class", "processor_class", "model_max_length", "chat_template", "backend"),
        *("is_local", "local_files_only", "name_or_path", "tokenizer_file", "errors"),
        *("clean_up_tokenization_spaces", "special_tokens_map_file", "legacy", "sp_model_kwargs"),
        *("do_lower_case", "model_input_names"),
    )
)
"""Settings that change no token of a text, at least not in the classes that are read here."""
OFF = ("split_special_tokens", "add_bos_token", "add_eos_token", "add_prefix_space")
"""Settings that change none if they are false or absent."""
TOKEN_FLAGS = frozenset(("content", "lstrip", "normalized", "rstrip", "single_word", "special"))
NO_LENGTH = int(1e30)  # as transformers has it where none is given

Special = Mapping[str, str | AddedToken | None]
"""By a name of `NAMES`."""


@dataclass(frozen=True, slots=True)
class StoredVocabulary:
    """The parts that a class builds its tokenizer of. `vocabulary` are ids of a BPE's tokens, or
    the tokens and scores of a unigram model in order; `charsmap` is sentencepiece's table of
    characters."""

    vocabulary: Any
    merges: Sequence[tuple[str, str]]
    charsmap: bytes | None = None


@dataclass(frozen=True, slots=True)
class TokenizerFamily:
    """One of transformers' classes: its `model`, its special tokens where the files name none,
    settings of its own that are served, by value, and the function that builds its tokenizer."""

    model: str
    special: Special
    build: Callable[[StoredVocabulary, Special], Tokenizer]
    extra: Callable[[Mapping[str, Any]], Sequence[str]] = lambda _: ()
    own_settings: frozenset[str] = frozenset()
    is_registered: bool = False
    """All special tokens are added once more, as special ones."""


@dataclass(frozen=True, slots=True)
class PlainTokenizer:
    """`special` are the special tokens that have names, `extra` the others."""

    tokenizer: Tokenizer
    special: Mapping[str, str]
    extra: Sequence[str]
    max_length: Any


def read_plain(folder: Path, family: TokenizerFamily) -> PlainTokenizer | None:
    """The tokenizer of a folder, None for one that only transformers reads. Raises `EngineFailed`
    or a library's error for files that can't be read."""
    where = folder.name
    settings = read_if_there(folder, SETTINGS, f"{where}/{SETTINGS}")
    is_whole = (folder / WHOLE).is_file()
    whole = read_json(folder, WHOLE, f"{where}/{WHOLE}") if is_whole else None
    if not _is_known(settings, family) or not _is_plain(whole, family):
        return None
    added = _added_tokens(folder, settings, whole)
    if added is None:
        return None
    special = _special_tokens(settings, family, added)
    extra = _extra_tokens(settings, family)
    stored = _stored(folder, whole)
    if special is None or extra is None or stored is None:
        return None
    tokenizer = family.build(stored, special)
    tokenizer.add_tokens(_to_add(added, special, extra))
    texts = {name: str(token) for name, token in special.items() if token is not None}
    if family.is_registered:
        every = dict.fromkeys((*texts.values(), *extra))
        tokenizer.add_tokens([AddedToken(token, special=True) for token in every])
    if any(tokenizer.token_to_id(str(token)) != i for i, token in added.items()):
        return None
    length = settings.get("model_max_length", NO_LENGTH)
    return PlainTokenizer(tokenizer, texts, extra, NO_LENGTH if length is None else length)


def _is_known(settings: Mapping[str, Any], family: TokenizerFamily) -> bool:
    """True for settings that are served here, with values that change nothing."""
    known = {*WITHOUT_EFFECT, *NAMES, *EXTRA, *OFF, *family.own_settings, "added_tokens_decoder"}
    return set(settings) <= known and not any(
        settings.get(name) for name in OFF if name not in family.own_settings
    )


def _is_plain(whole: Mapping[str, Any] | None, family: TokenizerFamily) -> bool:
    if whole is None:
        return family.model == "BPE"  # sentencepiece's own format is transformers'
    model = whole.get("model")
    if whole.get("padding") is not None or whole.get("truncation") is not None:
        return False
    return isinstance(model, dict) and model.get("type") == family.model


def _token(value: Any) -> str | AddedToken | None:
    """A special token as a config writes it; None if it is none or of an unknown form."""
    if isinstance(value, dict):
        flags = {name: flag for name, flag in value.items() if name != "__type"}
        is_token = value.get("__type") == "AddedToken" and set(flags) <= TOKEN_FLAGS
        return AddedToken(**flags) if is_token else None
    return value if isinstance(value, str) else None


def _added_tokens(
    folder: Path, settings: dict[str, Any], whole: Mapping[str, Any] | None
) -> dict[int, AddedToken] | None:
    """By id: those of the settings, or else of `tokenizer.json`; then the file of special tokens
    is older than both, and its tokens replace those in `settings`."""
    listed = settings.get("added_tokens_decoder")
    if "added_tokens_decoder" not in settings:
        if (folder / ADDED).is_file():
            return None
        listed = {each.get("id"): each for each in (whole or {}).get("added_tokens") or ()}
        special = read_if_there(folder, SPECIAL, f"{folder.name}/{SPECIAL}")
        if not set(special) <= set(NAMES):
            return None
        for name, value in special.items():
            if isinstance(value, dict):
                value = {**value, "__type": "AddedToken", "special": True}
            settings[name] = value
    if not isinstance(listed, dict):
        return None
    found: dict[int, AddedToken] = {}
    for i, token in listed.items():
        flags = {n: v for n, v in token.items() if n != "id"} if isinstance(token, dict) else {}
        if "content" not in flags or not set(flags) <= TOKEN_FLAGS:
            return None
        found[int(i)] = AddedToken(**flags)
    return found


def _special_tokens(
    settings: Mapping[str, Any], family: TokenizerFamily, added: Mapping[int, AddedToken]
) -> dict[str, str | AddedToken | None] | None:
    """By name, in transformers' order, with the flags of the added tokens; None for an unknown
    form."""
    by_text = {str(token): token for token in added.values()}
    found: dict[str, str | AddedToken | None] = {}
    for name in NAMES:
        token = family.special.get(name)
        if name in settings:
            token = _token(settings[name])
            if token is None and settings[name] is not None:
                return None
            token = by_text.get(str(token), token)
        found[name] = token
    return found


def _extra_tokens(settings: Mapping[str, Any], family: TokenizerFamily) -> Sequence[str] | None:
    """The special tokens without names; None for an unknown form."""
    given = next((settings[name] for name in EXTRA if name in settings), None)
    if given is None:
        return tuple(family.extra(settings))
    if given == {}:
        return ()
    is_list = isinstance(given, list) and all(isinstance(each, str) for each in given)
    return given if is_list else None


def _stored(folder: Path, whole: Mapping[str, Any] | None) -> StoredVocabulary | None:
    if whole is None:
        for name in (VOCABULARY, MERGES):
            check_file(folder / name, f"{folder.name}/{name}")
        vocabulary, merges = BPE.read_file(str(folder / VOCABULARY), str(folder / MERGES))
        return StoredVocabulary(vocabulary, merges)
    model = whole["model"]
    vocabulary = model.get("vocab")
    if model["type"] == "Unigram":
        return StoredVocabulary([tuple(each) for each in vocabulary], (), _charsmap(whole))
    if not isinstance(vocabulary, dict):
        return None
    pairs = (each.split(" ") if isinstance(each, str) else each for each in model["merges"])
    return StoredVocabulary(vocabulary, [(pair[0], pair[1]) for pair in pairs])


def _charsmap(whole: Mapping[str, Any]) -> bytes | None:
    normalizer = whole.get("normalizer") or {}
    for each in normalizer.get("normalizers", [normalizer]):
        if each.get("type") == "Precompiled" and "precompiled_charsmap" in each:
            return base64.b64decode(each["precompiled_charsmap"])
    return None


def _to_add(
    added: Mapping[int, AddedToken], special: Special, extra: Sequence[str]
) -> list[AddedToken]:
    """The added tokens by id, and the special ones that are not among them."""
    tokens: list[AddedToken] = [added[i] for i in sorted(added)]
    known = {str(token) for token in tokens}
    for token in (*special.values(), *extra):
        if token is not None and str(token) not in known:
            known.add(str(token))
            flagged = AddedToken(token, special=True) if isinstance(token, str) else token
            tokens.append(flagged)
    named = {str(token) for token in special.values() if token is not None}
    for token in tokens:
        token.special = token.special or str(token) in named
    return tokens
