"""The verb `keys`: makes, lists and removes API keys in the file that a server reads."""

from __future__ import annotations

import argparse
import math
import os
import sys
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


def run_keys(arguments: argparse.Namespace) -> int:
    """Run `keys add`, `keys list` or `keys remove`. Raises `InvalidRequest`."""
    actions: Mapping[str, Callable[[argparse.Namespace], None]] = {
        "add": _add,
        "list": _list,
        "remove": _remove,
    }
    actions[arguments.action](arguments)
    return 0


def _add(arguments: argparse.Namespace) -> None:
    """Print a new key, and write its hash to the file."""
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
    sys.stdout.write(f"{secret}\n")
    sys.stdout.flush()
    sys.stderr.write(f"this is the only time that the key of {name!r} is shown\n")


def _list(arguments: argparse.Namespace) -> None:
    now = time.time()
    for key in _read(arguments.file):
        limits = [
            f"weight {key.weight:g}",
            f"models {', '.join(sorted(key.models)) or 'all'}",
            *(
                f"{name.replace('_', ' ')} {value:g}"
                for name in ("max_jobs", "requests_per_minute", "engine_seconds_per_minute")
                if (value := getattr(key, name))
            ),
        ]
        if key.expires < math.inf:
            word = "expired" if key.expires <= now else "expires"
            moment = datetime.fromtimestamp(key.expires, UTC)
            limits.append(f"{word} {moment:%Y-%m-%d %H:%M:%S} UTC")
        sys.stdout.write(f"{key.name}: {'; '.join(limits)}\n")


def _remove(arguments: argparse.Namespace) -> None:
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
    sys.stderr.write(f"removed {len(gone)} of {len(named)} keys of {arguments.name!r}\n")


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
