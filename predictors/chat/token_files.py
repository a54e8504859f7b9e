"""Reads the tokens of a chat folder from its tokenizer's files, and checks them against the config:
ids, names and end tokens. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predictors.compute.checkpoint.folder import read_if_there, read_json, shown
from predictors.errors import EngineFailed

TOKENIZER_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"} | {
    f"{family}Tokenizer{kind}" for family in ("Qwen2", "Qwen2VL", "Qwen3") for kind in ("", "Fast")
}
"""Classes that read a byte-level BPE as its files say."""
TOKENIZER_OPTIONS = ("add_prefix_space", "split_special_tokens")
NAMED_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
"""By their keys in the config, as templates write them."""


def read_tokens(checkpoint: Path) -> dict[str, int]:
    """All tokens with their ids, as the tokenizer's files say; raises `EngineFailed` where there
    are none: the library would make an empty tokenizer."""
    settings = read_if_there(checkpoint, "tokenizer_config.json")
    kind = settings.get("tokenizer_class")
    if kind is not None and kind not in TOKENIZER_CLASSES:
        raise EngineFailed(f"tokenizer_config.json: tokenizer_class is {shown(kind)}, not Qwen's")
    for name in TOKENIZER_OPTIONS:
        if settings.get(name):
            raise EngineFailed(f"tokenizer_config.json sets {name}, which is not served")
    added = settings.get("added_tokens_decoder")
    if (checkpoint / "tokenizer.json").is_file():
        whole = read_json(checkpoint, "tokenizer.json", "tokenizer.json")
        model, extra = whole.get("model"), whole.get("added_tokens")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
    elif all((checkpoint / name).is_file() for name in ("vocab.json", "merges.txt")):
        vocabulary, extra = read_json(checkpoint, "vocab.json", "vocab.json"), None
    else:
        raise EngineFailed(
            "the checkpoint has no tokenizer: tokenizer.json, or vocab.json and merges.txt; fetch "
            "it again"
        )
    try:
        tokens = {str(token): int(i) for token, i in dict(vocabulary or {}).items()}
        tokens |= {token["content"]: int(token["id"]) for token in extra or ()}
        tokens |= {token["content"]: int(i) for i, token in dict(added or {}).items()}
    except (TypeError, ValueError, KeyError) as error:
        raise EngineFailed("the tokenizer's files hold tokens of an unknown form") from error
    tokens |= read_if_there(checkpoint, "added_tokens.json")
    if len(tokens) < 256:  # one for each byte
        raise EngineFailed(f"the tokenizer's files hold {len(tokens)} tokens; fetch them again")
    return tokens


def check_tokens(config: Mapping[str, Any], tokens: Mapping[str, int], vocab: int) -> None:
    """Raise `EngineFailed` for a token that the model has no embedding for, and for one that the
    config names and the tokenizer does not have."""
    token, last = max(tokens.items(), key=lambda pair: pair[1])
    if last >= vocab:
        raise EngineFailed(
            f"the tokenizer has a token {shown(token)} with id {last}; the model has {vocab}"
        )
    ids = set(tokens.values())
    for level in (config, config.get("text_config")):
        for name, value in level.items() if isinstance(level, dict) else ():
            if not name.endswith("_token_id") or value is None:
                continue
            for i in value if isinstance(value, list) else [value]:
                if i not in ids:
                    raise EngineFailed(
                        f"config.json: {name} {shown(i)} is no token of the tokenizer; fetch the "
                        "tokenizer's files again"
                    )
    for name, written in NAMED_TOKENS.items():
        wanted = config.get(name, tokens.get(written))
        if written not in tokens or tokens[written] != wanted:
            raise EngineFailed(
                f"config.json: {name} is {shown(wanted)}, the tokenizer's {written} "
                f"{shown(tokens.get(written))}"
            )


def end_tokens(
    checkpoint: Path, config: Mapping[str, Any], tokens: Mapping[str, int]
) -> frozenset[int]:
    """All that end an answer: what the generation config, the config and the tokenizer name. Each
    is forgotten in some folder, and an answer that does not end is worse than one end too many."""
    generation = read_if_there(checkpoint, "generation_config.json")
    text = config.get("text_config")
    ends: set[int] = set()
    for level in (generation, config, text if isinstance(text, dict) else {}):
        named = level.get("eos_token_id")
        for end in named if isinstance(named, list) else [] if named is None else [named]:
            if isinstance(end, bool) or not isinstance(end, int):
                raise EngineFailed(f"eos_token_id is {shown(named)}: no number of a token")
            ends.add(end)
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        named = read_if_there(checkpoint, file).get("eos_token")
        written = named.get("content") if isinstance(named, dict) else named
        if isinstance(written, str) and written in tokens:
            ends.add(tokens[written])
    if not ends:
        raise EngineFailed("neither generation_config.json nor the tokenizer names an end token")
    return frozenset(ends)
