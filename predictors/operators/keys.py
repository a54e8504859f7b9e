"""The verb `keys`: makes, lists and removes API keys in the file that a server reads."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.key_file import (
    MAX_FILE_BYTES,
    TERMS,
    ApiKey,
    digest_of,
    field_from_text,
    new_key,
    read_keys,
    write_keys,
)


def run_keys(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run `keys add`, `keys list` or `keys remove`; returns its report, that of `add` with the new
    key. Raises `InvalidRequest`."""
    actions: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "add": _add,
        "list": _list,
        "remove": _remove,
    }
    return actions[arguments.action](arguments)


def _add(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make a new key, and write its hash to the file."""
    keys = _read(arguments.file, may_be_missing=True)
    before = [key for key in keys if key.name == arguments.name]
    given = {name: text for name in TERMS if (text := getattr(arguments, name, None)) is not None}
    if before and not arguments.rotate:
        raise InvalidRequest(
            f"there is a key with the name {arguments.name!r}; `--rotate` adds another with the "
            "same terms, until `keys remove --old` ends the first"
        )
    if arguments.rotate and (not before or given.keys() - {"expires"}):
        raise InvalidRequest(
            "--rotate takes the name of a key in the file, and no terms but --expires"
        )
    secret = new_key()
    values: dict[str, Any] = {name: field_from_text(name, text) for name, text in given.items()}
    name = field_from_text("name", arguments.name)
    base = before[-1] if before else ApiKey(name, b"")
    key = replace(base, digest=digest_of(secret), **{"expires": math.inf, **values})
    _write(arguments.file, [*keys, key])
    return {**_terms(key), "key": secret}


def _list(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"keys": [_terms(key) for key in _read(arguments.file)]}


def _terms(key: ApiKey) -> dict[str, Any]:
    """Name and terms as JSON values; None for a limit that it does not have."""
    ends = key.expires < math.inf
    return {
        "name": key.name,
        "weight": key.weight,
        "models": sorted(key.models) or None,
        "max_jobs": key.max_jobs or None,
        "requests_per_minute": key.requests_per_minute or None,
        "engine_seconds_per_minute": key.engine_seconds_per_minute or None,
        "expires": f"{datetime.fromtimestamp(key.expires, UTC):%Y-%m-%dT%H:%M:%SZ}"
        if ends
        else None,
        "is_expired": key.expires <= time.time(),
    }


def _remove(arguments: argparse.Namespace) -> dict[str, Any]:
    keys = _read(arguments.file)
    named = [key for key in keys if key.name == arguments.name]
    if not named:
        raise InvalidRequest(f"there is no key with the name {arguments.name!r}")
    gone = named[:-1] if arguments.old else named
    if not gone:
        raise InvalidRequest(f"{arguments.name!r} has one key only, no old one")
    kept = [key for key in keys if key not in gone]
    if not kept:
        raise InvalidRequest("it is the last key; a file without keys can't be used: delete it")
    _write(arguments.file, kept)
    return {"name": arguments.name, "removed": len(gone), "kept": len(named) - len(gone)}


def _read(path: Path, *, may_be_missing: bool = False) -> tuple[ApiKey, ...]:
    try:
        with path.open("rb") as file:
            return read_keys(file.read(MAX_FILE_BYTES + 1))
    except FileNotFoundError as error:
        if may_be_missing:
            return ()
        raise InvalidRequest(f"{str(path)!r} can't be read: {error.strerror}") from error
    except OSError as error:
        raise InvalidRequest(f"{str(path)!r} can't be read: {error.strerror}") from error


def _write(path: Path, keys: Sequence[ApiKey]) -> None:
    """Replace the file as a whole, so that a server never reads half of it."""
    raw = write_keys(keys)
    read_keys(raw)
    part = path.with_name(f"{path.name}.part")
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(raw)
            file.flush()
            os.fsync(descriptor)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InvalidRequest(f"{str(path)!r} can't be written: {error.strerror}") from error
