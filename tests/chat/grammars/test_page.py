"""docs/structured-output.md beside the tables and limits that it describes."""

from __future__ import annotations

from pathlib import Path

import pytest

from predictors.chat.grammars import lark, patterns, schemas
from predictors.protocol import answer_format

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "structured-output.md").read_text()
NAMES = [*schemas.REFUSED, *schemas.ANNOTATIONS, *schemas.FORMATS]
NUMBERS = [
    answer_format.MAX_SCHEMA_BYTES,
    answer_format.MAX_SCHEMA_VALUES,
    answer_format.MAX_SCHEMA_DEPTH,
    answer_format.MAX_ENUM,
    answer_format.MAX_PATTERN_CHARS,
    answer_format.MAX_CHOICES,
    answer_format.MAX_CHOICE_CHARS,
    answer_format.MAX_GRAMMAR_CHARS,
    schemas.MAX_LITERAL_CHARS,
    schemas.MAX_OPTIONAL,
    schemas.MAX_MULTIPLE,
    patterns.MAX_PARTS,
    patterns.MAX_GROUPS,
    lark.MAX_TIMES,
]


def test_the_page_lists_every_keyword_and_limit() -> None:
    assert [name for name in NAMES if f"`{name}`" not in PAGE] == []
    assert [number for number in NUMBERS if f"{number:,}" not in PAGE] == []


@pytest.mark.parametrize("keyword", ["minLength", "oneOf", "$ref", "multipleOf", "prefixItems"])
def test_a_kept_keyword_is_listed(keyword: str) -> None:
    assert f"`{keyword}`" in PAGE
    assert keyword not in schemas.REFUSED
