"""Values of the form `NAME=PATH` and `NAME=VALUE`, of flags that may be repeated: models, parts,
adapters and parameters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from predictors.errors import InvalidRequest


def named_paths(flags: Sequence[str], option: str = "--model") -> dict[str, Path]:
    """The paths of `NAME=PATH` by name. Raises `InvalidRequest` for another form, and for a name
    given twice."""
    found: dict[str, Path] = {}
    for raw in flags:
        name, separator, path = raw.partition("=")
        if not separator or not name or not path:
            raise InvalidRequest(f"{option} takes NAME=PATH, not {raw!r}{_named(raw, option)}")
        if name in found:
            raise InvalidRequest(f"{option} {name} is given twice; each needs a name of its own")
        found[name] = Path(path)
    return found


def _named(raw: str, option: str) -> str:
    """The end of the message for a path without a name, with what to write; or empty."""
    path = Path(raw)
    is_path = "=" not in raw and path.name and (path.exists() or len(path.parts) > 1)
    return f"; for example {option} {path.name}={raw}" if is_path else ""


def named_aliases(flags: Sequence[str], models: Sequence[str]) -> list[str]:
    """Each as `ALIAS=NAME`; an alias alone is one of the only model, as vLLM takes it. `models` are
    values of `--model`."""
    only = models[0].partition("=")[0] if len(models) == 1 else ""
    whole = [f"{raw}={only}" if only and "=" not in raw else raw for raw in flags]
    return [each for each in whole if each != f"{only}={only}"]


def named_components(flags: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, Path]]:
    """The paths of `PART=PATH` or `MODEL.PART=PATH` by model and part. Raises `InvalidRequest` as
    `named_paths`, and where the model is not clear."""
    found: dict[str, dict[str, Path]] = {}
    for name, path in named_paths(flags, "--component").items():
        model, _, part = name.rpartition(".")
        if not model and len(models) != 1:
            raise InvalidRequest(f"--component {name}: of which model? Write MODEL.{part}=PATH")
        model = model or models[0]
        if model not in models:
            raise InvalidRequest(f"--component {name}: there is no --model {model}")
        if part in found.setdefault(model, {}):
            raise InvalidRequest(f"--component {part} is given twice for {model}")
        found[model][part] = path
    return found


def named_loras(flags: Sequence[str], models: Sequence[str]) -> dict[str, dict[str, Path]]:
    """The paths of `NAME=PATH` or `MODEL:NAME=PATH` by model and adapter; `models` are those that
    take adapters. Raises `InvalidRequest` as `named_paths`, and where the model is not clear."""
    found: dict[str, dict[str, Path]] = {}
    for given, path in named_paths(flags, "--lora").items():
        model, _, name = given.rpartition(":")
        if not models:
            raise InvalidRequest(f"--lora {given}: no model here takes adapters")
        if not model and len(models) != 1:
            raise InvalidRequest(f"--lora {given}: of which model? Write MODEL:{name}=PATH")
        model = model or models[0]
        if model not in models:
            raise InvalidRequest(
                f"--lora {given}: there is no --model {model} that takes adapters; there is "
                f"{', '.join(models)}"
            )
        if name in found.setdefault(model, {}):
            raise InvalidRequest(f"--lora {name} is given twice for {model}")
        found[model][name] = path
    return found


def named_value(raw: str) -> tuple[str, str | int | float | bool]:
    """Split `NAME=VALUE`; the value is JSON, or else text. Raises `InvalidRequest`."""
    name, separator, text = raw.partition("=")
    if not separator or not name:
        raise InvalidRequest(f"--parameter takes NAME=VALUE, not {raw!r}")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if not isinstance(value, str | int | float | bool):
        raise InvalidRequest(f"--parameter {name} takes one number, text or truth value")
    return name, value
