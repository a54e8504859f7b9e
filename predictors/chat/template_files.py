"""Reads the chat template of a checkpoint folder from the files in which transformers has kept it
over time, in transformers' order. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from predictors.compute.checkpoint.folder import read_if_there, read_whole, reading, shown
from predictors.errors import EngineFailed

PROCESSOR, LEGACY = "processor_config.json", "chat_template.json"
RAW, NAMED = "chat_template.jinja", "additional_chat_templates"
TOKENIZER = "tokenizer_config.json"
DEFAULT = "default"


def read_template(checkpoint: Path) -> str | None:
    """The text of the template that a request without a template's name is rendered by; None if
    the folder has none.

    The order is `chat_template` of processor_config.json, chat_template.json, then
    chat_template.jinja with the named ones beside it, then tokenizer_config.json. Raises
    `EngineFailed` where only named templates are there and none is called `default`, and for
    files that transformers does not read together.
    """
    for file in (PROCESSOR, LEGACY):
        found = _value(checkpoint, file)
        if file == LEGACY and found is not None and any((checkpoint / NAMED).glob("*.jinja")):
            raise EngineFailed(
                f"the folder has {LEGACY} and {NAMED}, which transformers does not read together; "
                f"write the first as {RAW}"
            )
        if found is not None:
            return _default(found, file)
    raw = {file.stem: file for file in sorted((checkpoint / NAMED).glob("*.jinja"))}
    if (checkpoint / RAW).is_file():
        raw[DEFAULT] = checkpoint / RAW
    if raw:
        with reading(f"{RAW} or a template in {NAMED}"):
            texts = {name: read_whole(f, f.name).decode() for name, f in raw.items()}
        return _default(texts, NAMED)
    found = _value(checkpoint, TOKENIZER)
    return None if found is None else _default(found, TOKENIZER)


def _value(checkpoint: Path, file: str) -> Any:
    return read_if_there(checkpoint, file).get("chat_template")


def _default(found: Any, where: str) -> str:
    """The text itself, or of named templates (a mapping, or a list of objects) the default one."""
    if isinstance(found, list):
        pairs = [each for each in found if isinstance(each, dict)]
        found = {str(each.get("name")): each.get("template") for each in pairs}
    if isinstance(found, Mapping):
        if DEFAULT not in found:
            raise EngineFailed(
                f"{where} has the chat templates {shown(', '.join(found))}, but none called "
                f"{DEFAULT!r}, by which requests would be rendered"
            )
        found = found[DEFAULT]
    if not isinstance(found, str):
        raise EngineFailed(f"{where}: chat_template is {shown(found)}, not a text")
    return found
