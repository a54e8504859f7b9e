"""Both tokenizers of a FLUX.1 folder are those of transformers' classes: the same description of
the tokenizer, special tokens and ids, for every form of files that hubs have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer, T5Tokenizer

from predictors.errors import EngineFailed
from predictors.models.flux import prompt_tokenizers
from predictors.models.flux.prompt_tokenizers import (
    PromptTokenizer,
    read_clip_tokenizer,
    read_t5_tokenizer,
)
from tests.variants import FLUX

TEXTS = (
    "",
    "a red circle above 2 blue squares",
    "A  Large\n\tRED Circle, caf\u00e9 cafe\u0301 \u4e2d\u6587 it's they'll 12.5!",
    "a <|endoftext|> b <|startoftext|> C</s> <pad> <extra_id_0> <unk>",
    "\u1e9e \u0130 \ufb01 \u2126 \U0001f600 \u00a0 x\u200by",
    "circle " * 200,
)
Change = Callable[[Path], None]


def settings(**values: Any) -> Change:
    """Sets values of tokenizer_config.json; `...` takes one out."""

    def change(folder: Path) -> None:
        file = folder / "tokenizer_config.json"
        found = {**json.loads(file.read_text()), **values}
        kept = {name: value for name, value in found.items() if value is not ...}
        file.write_text(json.dumps(kept))

    return change


def written(name: str, value: Any) -> Change:
    return lambda folder: (folder / name).write_text(json.dumps(value)) and None


def without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def whole(**values: Any) -> Change:
    """Sets values of tokenizer.json."""

    def change(folder: Path) -> None:
        file = folder / "tokenizer.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes] and None


def flags(content: str, **values: bool) -> dict[str, Any]:
    names = ("lstrip", "normalized", "rstrip", "single_word")
    return {"content": content, **dict.fromkeys(names, False), "special": True, **values}


START, END = "<|startoftext|>", "<|endoftext|>"
# as in black-forest-labs/FLUX.1-dev: no tokenizer.json, and these two files
HUB_CLIP = both(
    without("tokenizer.json"),
    settings(
        add_prefix_space=False,
        added_tokens_decoder={"842": flags(START, normalized=True), "843": flags(END)},
        clean_up_tokenization_spaces=True,
        do_lower_case=True,
        errors="replace",
    ),
    written(
        "special_tokens_map.json",
        {
            "bos_token": {k: v for k, v in flags(START, normalized=True).items() if k != "special"},
            **dict.fromkeys(("eos_token", "pad_token", "unk_token"), END),
        },
    ),
)
PLAIN_CLIP = {
    "as it ships": both(),
    "as the hub's": HUB_CLIP,
    "without tokenizer.json": without("tokenizer.json"),
    "without settings": both(settings(model_max_length=77, tokenizer_class=...)),
    "only a length": written("tokenizer_config.json", {"model_max_length": 77}),
    "special tokens in their file": both(
        settings(bos_token=..., eos_token=..., pad_token=..., unk_token=...),
        written("special_tokens_map.json", {"pad_token": "a</w>", "eos_token": flags(END)}),
    ),
    "tokens with flags": settings(pad_token={"__type": "AddedToken", **flags("!", lstrip=True)}),
    "another pad token": settings(pad_token="!"),
    "one more token": settings(extra_special_tokens=["circle</w>"]),
    "old name of the same": settings(additional_special_tokens=["circle</w>"]),
}
READ_BY_TRANSFORMERS_CLIP = {
    "an unknown setting": settings(a_setting_of_tomorrow=1),
    "truncation on the left": settings(truncation_side="left"),
    "padding in tokenizer.json": whole(
        padding={
            "strategy": {"Fixed": 77},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 843,
            "pad_type_id": 0,
            "pad_token": END,
        }
    ),
    "an id that is not the vocabulary's": settings(added_tokens_decoder={"900": flags("<x>")}),
    "tokens by name": settings(extra_special_tokens={"image_token": "<x>"}),
}
EXTRA_IDS = [f"<extra_id_{i}>" for i in range(100)]
PLAIN_T5 = {
    "as it ships": both(),
    "as the hub's": settings(
        add_prefix_space=True,
        added_tokens_decoder={
            "0": flags("<pad>"),
            "1": flags("</s>"),
            "2": flags("<unk>"),
            **{str(682 + i): flags(f"<extra_id_{99 - i}>") for i in range(100)},
        },
        additional_special_tokens=EXTRA_IDS,
        extra_special_tokens=...,
        clean_up_tokenization_spaces=True,
        extra_ids=100,
        legacy=True,
        sp_model_kwargs={},
    ),
    "extra ids by their number": settings(extra_ids=3, extra_special_tokens=...),
    "extra ids unnamed": settings(extra_ids=..., extra_special_tokens=...),
    "only a length": written("tokenizer_config.json", {"model_max_length": 64}),
    "without settings": without("tokenizer_config.json"),
}
READ_BY_TRANSFORMERS_T5 = {
    "an unknown setting": settings(a_setting_of_tomorrow=1),
    "padding on the left": settings(padding_side="left"),
}


def copied(tmp_path: Path, part: str, change: Change) -> Path:
    folder = Path(shutil.copytree(FLUX / part, tmp_path / part))
    change(folder)
    return folder


def check_equal(ours: PromptTokenizer, theirs: Any, text_tokens: int) -> None:
    theirs.backend_tokenizer.no_padding()
    theirs.backend_tokenizer.no_truncation()
    described = [json.loads(each.to_str()) for each in (ours.tokenizer, theirs.backend_tokenizer)]
    for each in described:
        del each["post_processor"]  # ours goes around the tokens of a text
    assert described[0] == described[1]
    assert (ours.eos_token, ours.pad_token) == (theirs.eos_token, theirs.pad_token)
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.special_ids == set(theirs.all_special_ids)
    assert ours.model_max_length == theirs.model_max_length
    assert ours.get_vocab() == theirs.get_vocab()
    for text in TEXTS:
        read = ours.read(text)
        assert read == theirs(text).input_ids
        for length in (text_tokens, 2, 3):
            padded = theirs(text, padding="max_length", max_length=length, truncation=True)
            assert ours.padded(read, length) == padded.input_ids
            assert min(len(read), length) == sum(padded.attention_mask)


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of transformers that were used."""
    found: list[str] = []
    real = prompt_tokenizers._of_transformers

    def noted(folder: Path, name: str) -> PromptTokenizer:
        found.append(name)
        return real(folder, name)

    monkeypatch.setattr(prompt_tokenizers, "_of_transformers", noted)
    return found


@pytest.mark.parametrize("form", [*PLAIN_CLIP, *READ_BY_TRANSFORMERS_CLIP])
def test_clips_tokenizer_is_that_of_transformers(
    tmp_path: Path, form: str, asked_for: list[str]
) -> None:
    change = {**PLAIN_CLIP, **READ_BY_TRANSFORMERS_CLIP}[form]
    folder = copied(tmp_path, "tokenizer", change)
    ours = read_clip_tokenizer(folder)
    assert asked_for == ["CLIPTokenizer"] * (form in READ_BY_TRANSFORMERS_CLIP)
    check_equal(ours, CLIPTokenizer.from_pretrained(folder), 77)


@pytest.mark.parametrize("form", [*PLAIN_T5, *READ_BY_TRANSFORMERS_T5])
def test_t5s_tokenizer_is_that_of_transformers(
    tmp_path: Path, form: str, asked_for: list[str]
) -> None:
    folder = copied(tmp_path, "tokenizer_2", {**PLAIN_T5, **READ_BY_TRANSFORMERS_T5}[form])
    ours = read_t5_tokenizer(folder)
    assert asked_for == ["T5Tokenizer"] * (form in READ_BY_TRANSFORMERS_T5)
    check_equal(ours, T5Tokenizer.from_pretrained(folder), 64)


def test_files_that_neither_reads_are_named(tmp_path: Path) -> None:
    folder = copied(tmp_path, "tokenizer", settings(eos_token=None, pad_token=None))
    with pytest.raises(EngineFailed, match="the tokenizer in tokenizer can't be read"):
        read_clip_tokenizer(folder)
