"""The file of API keys: JSON with the hash, the name and the limits of each.

    {"keys": [{"name": "ann", "sha256": "<64 hex digits>", "weight": 2, "models": ["flux"],
               "max_jobs": 8, "requests_per_minute": 60, "engine_seconds_per_minute": 30,
               "expires": "2027-01-31T00:00:00Z"}]}

Only `name` and `sha256` are required. Two keys may have one name, for rotation, if they differ in
nothing but hash and expiry. Errors name entry and field, never a hash.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import orjson

from predictors.settings import InvalidSetting

MAX_FILE_BYTES = 2**20
MAX_KEYS = 256
"""Each request's key is compared with all of them."""
MAX_KEY_BYTES = 256  # of a key that a caller presents
MAX_MODELS = 64
MAX_WEIGHT = 1000.0
KEY_PREFIX = "vpk_"
"""Beginning of the keys that `new_key` makes, so that secret scanners and people recognise them."""
KEY_BYTES = 32  # random ones of a key

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_EMPTY = hashlib.sha256(b"").digest()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, without the key itself. A limit of 0 is none."""

    name: str
    digest: bytes
    """SHA-256 of the key."""
    weight: float = 1.0
    """The caller's share of an engine, relative to others'."""
    models: frozenset[str] = frozenset()
    """Names of the models that it may use; empty: all."""
    max_jobs: int = 0
    """Jobs that wait or run at a time."""
    requests_per_minute: float = 0.0
    engine_seconds_per_minute: float = 0.0
    expires: float = math.inf
    """Unix time from which the key is refused."""

    def __repr__(self) -> str:
        return f"ApiKey({self.name!r})"

    @property
    def terms(self) -> ApiKey:
        """All but hash and expiry, which two keys of one name have in common."""
        return replace(self, digest=b"", expires=math.inf)


def new_key() -> str:
    """A new key of 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest_of(key: str) -> bytes:
    """SHA-256 of a key, of whose text so much is read that a longer one matches none."""
    return hashlib.sha256(key[: MAX_KEY_BYTES + 1].encode("utf-8", "replace")).digest()


def read_keys(raw: bytes) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises `InvalidSetting`."""
    if len(raw) > MAX_FILE_BYTES:
        raise _bad(f"has {len(raw)} bytes; at most {MAX_FILE_BYTES} are read")
    content = _parse(raw)
    if not isinstance(content, dict) or content.keys() != {"keys"}:
        raise _bad('must be an object with the one field "keys"')
    entries = content["keys"]
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_KEYS:
        raise _bad(f'must have from 1 to {MAX_KEYS} entries in the list "keys"')
    keys = tuple(_read_entry(f"keys[{i}]", entry) for i, entry in enumerate(entries))
    _check_together(keys)
    return keys


def field_from_text(name: str, text: str) -> Any:
    """The value of one field from a command line. Raises `InvalidSetting`."""
    value: object = text
    if name == "models":
        value = [each.strip() for each in text.split(",")]
    elif name not in ("name", "expires"):
        try:
            value = int(text) if name == "max_jobs" else float(text)
        except ValueError:
            value = None
    read = _FIELDS[name].read(value)
    if read is None:
        raise InvalidSetting(f"{name.replace('_', '-')} must be {_FIELDS[name].about}")
    return read


def _parse(raw: bytes) -> object:
    # the decoder's own errors quote the text
    try:
        return json.loads(raw, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _bad(f"is not JSON: line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError):  # not UTF-8, too deep, a number of thousands of digits
        raise _bad("is not JSON in UTF-8 that can be read") from None


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _bad(f"has {twice[:64]!r} twice in one object")
    return found


def _refuse_constant(name: str) -> object:
    raise _bad(f"has {name}, which is no number of JSON")


def write_keys(keys: Sequence[ApiKey]) -> bytes:
    """The content of a file that `read_keys` reads as these keys."""
    entries = [
        {name: _FIELDS[name].write(value) for name, value in _fields_of(key).items()}
        for key in keys
    ]
    return orjson.dumps({"keys": entries}, option=orjson.OPT_INDENT_2) + b"\n"


def _fields_of(key: ApiKey) -> dict[str, Any]:
    plain = ApiKey("", b"")
    found = {"name": key.name, "sha256": key.digest}
    for name in _FIELDS:
        if name not in found and getattr(key, name) != getattr(plain, name):
            found[name] = getattr(key, name)
    return found


def _read_entry(where: str, entry: object) -> ApiKey:
    if not isinstance(entry, dict):
        raise _bad(f"has no object at {where}")
    for name in ("name", "sha256"):
        if name not in entry:
            raise _bad(f"lacks {where}.{name}")
    values: dict[str, Any] = {}
    for name, value in entry.items():
        field = _FIELDS.get(name)
        if field is None:
            raise _bad(
                f"has an unknown field {name[:64]!r} in {where}; known: {', '.join(_FIELDS)}"
            )
        read = field.read(value)
        if read is None:
            raise _bad(f"has a wrong {where}.{name}: it must be {field.about}")
        values[field.attribute or name] = read
    return ApiKey(**values)


def _check_together(keys: Sequence[ApiKey]) -> None:
    by_name: dict[str, int] = {}
    by_digest: dict[bytes, int] = {}
    for i, key in enumerate(keys):
        if key.digest in by_digest:
            raise _bad(f"has the same sha256 in keys[{by_digest[key.digest]}] and keys[{i}]")
        by_digest[key.digest] = i
        first = by_name.setdefault(key.name, i)
        if keys[first].terms != key.terms:
            raise _bad(
                f"has the name {key.name!r} in keys[{first}] and keys[{i}] with different weights, "
                "models or limits; keys of one name may differ in sha256 and expires only"
            )


def _bad(text: str) -> InvalidSetting:
    return InvalidSetting(f"the file of PREDICTORS_ACCESS_KEYS_FILE {text}")


# -- fields: None stands for a value that is none --------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Field:
    read: Callable[[object], Any]
    about: str
    write: Callable[[Any], object] = lambda value: value
    attribute: str = ""


def _read_name(value: object) -> str | None:
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None


def _read_digest(value: object) -> bytes | None:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        return None
    digest = bytes.fromhex(value)
    return None if digest == _EMPTY else digest


def _read_models(value: object) -> frozenset[str] | None:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MODELS:
        return None
    is_text = all(isinstance(each, str) and 1 <= len(each) <= 128 for each in value)
    return frozenset(value) if is_text else None


def _number(least: float, most: float) -> Callable[[object], float | None]:
    def read(value: object) -> float | None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and least <= value <= most else None  # type: ignore[arg-type, operator]

    return read


def _read_jobs(value: object) -> int | None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return value if is_whole and 1 <= value <= 10**6 else None  # type: ignore[operator, return-value]


def read_expiry(value: object) -> float | None:
    """Unix time of an ISO 8601 date (its first moment in UTC), or date and time with a zone."""
    if not isinstance(value, str) or len(value) > 40:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        if len(value) != len("2027-01-31"):
            return None
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


def _write_expiry(value: float) -> str:
    return datetime.fromtimestamp(value, UTC).isoformat().replace("+00:00", "Z")


_RATE = "a number above 0 (from 0.001 to 1000000)"
_FIELDS: Mapping[str, _Field] = {
    "name": _Field(
        _read_name, "1 to 64 letters, digits and ._@+-, beginning with one of the first"
    ),
    "sha256": _Field(
        _read_digest,
        "64 lower-case hexadecimal digits, not those of an empty key",
        bytes.hex,
        attribute="digest",
    ),
    "weight": _Field(_number(0.001, MAX_WEIGHT), f"a number from 0.001 to {MAX_WEIGHT:g}"),
    "models": _Field(_read_models, f"a list of 1 to {MAX_MODELS} names", sorted),
    "max_jobs": _Field(_read_jobs, "a whole number from 1 to 1000000"),
    "requests_per_minute": _Field(_number(0.001, 10**6), _RATE),
    "engine_seconds_per_minute": _Field(_number(0.001, 10**6), _RATE),
    "expires": _Field(
        read_expiry, "a date, or date and time with a zone, as 2027-01-31T00:00:00Z", _write_expiry
    ),
}
TERMS = tuple(name for name in _FIELDS if name not in ("name", "sha256"))
"""Fields that need not be there."""
