"""The tokenizer and the rendering of a chat folder are those of transformers, for every form of
files that hubs have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from predictors.chat.chat_template import ChatTemplate
from predictors.chat.chat_tokenizer import read_chat_tokenizer
from predictors.chat.template_files import read_template
from tests.models.flux.test_prompt_tokenizers import (
    TEXTS,
    Change,
    both,
    flags,
    settings,
    whole,
    without,
    written,
)
from tests.variants import QWEN

TOKENS = json.loads((QWEN / "tokenizer.json").read_text())["added_tokens"]
LISTED = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in TOKENS}
FORMS: dict[str, Change] = {
    "as it ships": both(),
    # as in Qwen/Qwen2.5-VL-3B-Instruct
    "as the hub's": settings(
        add_bos_token=False,
        add_prefix_space=False,
        added_tokens_decoder=LISTED,
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<|image_pad|>"],
        clean_up_tokenization_spaces=False,
        errors="replace",
        split_special_tokens=False,
    ),
    "without tokenizer.json": both(
        without("tokenizer.json"), settings(added_tokens_decoder=LISTED)
    ),
    "of the fast class": settings(tokenizer_class="Qwen2TokenizerFast"),
    "of no class": settings(tokenizer_class=...),
    "without settings": without("tokenizer_config.json"),
    "special tokens in their file": both(
        settings(eos_token=..., pad_token=...),
        written("special_tokens_map.json", {"eos_token": flags("<|im_end|>", lstrip=True)}),
    ),
    "an end token with flags": settings(
        eos_token={"__type": "AddedToken", **flags("<|im_end|>", rstrip=True)}
    ),
}
READ_BY_TRANSFORMERS: dict[str, Change] = {
    "of the base class": settings(tokenizer_class="PreTrainedTokenizerFast"),
    "an unknown setting": settings(a_setting_of_tomorrow=1),
    "added tokens in their file": written("added_tokens.json", {"<|im_end|>": 801}),
    "truncation in tokenizer.json": whole(
        truncation={
            "direction": "Right",
            "max_length": 9999,
            "strategy": "LongestFirst",
            "stride": 0,
        }
    ),
}


def copied(tmp_path: Path, change: Change) -> Path:
    kept = shutil.ignore_patterns("*.safetensors")
    folder = Path(shutil.copytree(QWEN, tmp_path / "copy", ignore=kept))
    change(folder)
    return folder


@pytest.mark.parametrize("form", [*FORMS, *READ_BY_TRANSFORMERS])
def test_the_tokenizer_is_that_of_transformers(tmp_path: Path, form: str) -> None:
    folder = copied(tmp_path, {**FORMS, **READ_BY_TRANSFORMERS}[form])
    ours = read_chat_tokenizer(folder)
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    described = [json.loads(x.to_str()) for x in (ours.tokenizer, theirs.backend_tokenizer)]
    if form in FORMS:  # a text's own tokens are asked for, and no others
        for each in described:
            del each["post_processor"]
    assert described[0] == described[1]
    assert ours.special == {name: str(token) for name, token in theirs.special_tokens_map.items()}
    for text in (*TEXTS, "<|im_start|>user\n<|image_pad|><|im_end|>\n", "  x\n\n y\t\u1100\u1161"):
        ids = ours.tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text, add_special_tokens=False)
        for keeps in (True, False):
            decoded = ours.tokenizer.decode(ids, skip_special_tokens=not keeps)
            assert decoded == theirs.decode(ids, skip_special_tokens=not keeps)


TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "rules & <b>"},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "caf\u00e9 "}]},
    {"role": "assistant", "content": "an answer  "},
]
PARTS = [{"role": "assistant", "content": [{"type": "text", "text": "so "}, {"type": "image"}]}]
SCOPED = (
    "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}{{ m.content }}"
    "{% endgeneration %}{{ x }}{% endfor %}{{ eos_token }}{{ add_generation_prompt }}"
)
TEMPLATES = {
    "the folder's": None,
    "a scope of answers": SCOPED,
    "JSON": "{{ messages | tojson }}{{ messages | tojson(true, 2) }}{{ tools | tojson(indent=1) }}",
    "one that stops": "{{ raise_exception('no') }}",
    "loops": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}"
    "{% endfor %}",
    "a private name": "{{ messages.__class__ }}",
    "a change": "{{ messages.append(1) }}",
    "trimmed": "{% for m in messages %}{{ m.content | trim }}{% endfor %}",
    "no syntax": "{% for %}",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "an opened answer": {"add_generation_prompt": True},
    "a goal": {"continue_final_message": True},
    "two goals": {"add_generation_prompt": True, "continue_final_message": True},
    "variables": {"add_vision_id": True, "eos_token": "mine"},
    "tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    "documents": {"documents": [{"title": "a", "text": "b"}]},
}


def outcome(render: Callable[..., str], turns: Any, options: dict[str, Any]) -> str | type:
    """The text, or the type of what is raised."""
    try:
        return render(turns, **options)
    except (TemplateError, ValueError, TypeError) as error:
        return type(error)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_conversations_are_rendered_as_by_transformers(template: str, options: str) -> None:
    text = TEMPLATES[template] or read_template(QWEN)
    theirs = AutoTokenizer.from_pretrained(QWEN, local_files_only=True)
    ours = ChatTemplate(text, read_chat_tokenizer(QWEN).special)
    for turns in (TURNS, TURNS[:2], PARTS, []):
        before = json.dumps(turns)
        of_library = partial(theirs.apply_chat_template, chat_template=text, tokenize=False)
        expected = outcome(of_library, turns, OPTIONS[options])
        assert outcome(ours.render, turns, OPTIONS[options]) == expected
        assert json.dumps(turns) == before
