"""The file of API keys: its fields, strict errors, and what is written is read as the same."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.protocol.key_file import (
    MAX_FILE_BYTES,
    MAX_KEY_BYTES,
    MAX_KEYS,
    MAX_MODELS,
    ApiKey,
    digest_of,
    field_from_text,
    new_key,
    read_expiry,
    read_keys,
    write_keys,
)
from predictors.settings import InvalidSetting

HASH = hashlib.sha256(b"a key").hexdigest()
ENTRY = {"name": "ann", "sha256": HASH}


def file_of(*entries: object) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


def test_a_key_needs_a_name_and_a_hash_and_has_no_limits_then() -> None:
    (key,) = read_keys(file_of(ENTRY))
    assert key == ApiKey("ann", bytes.fromhex(HASH))
    assert (key.weight, key.models, key.max_jobs, key.expires) == (1.0, frozenset(), 0, math.inf)


def test_every_field_is_read() -> None:
    more = {
        "weight": 2, "models": ["flux", "org/qwen"], "max_jobs": 8, "requests_per_minute": 60,
        "engine_seconds_per_minute": 1.5, "expires": "2027-01-31T12:00:00+02:00",
    }  # fmt: skip
    (key,) = read_keys(file_of({**ENTRY, **more}))
    models = frozenset({"flux", "org/qwen"})
    moment = 1801389600.0
    assert key == ApiKey("ann", bytes.fromhex(HASH), 2.0, models, 8, 60.0, 1.5, moment)


BAD_FIELDS: list[tuple[str, Any]] = [
    ("name", ""), ("name", "a b"), ("name", "-a"), ("name", "a" * 65), ("name", "ann\n"),
    ("name", "zoë"), ("name", 7), ("name", None), ("name", 'a"b'), ("name", "a{b"),
    ("sha256", ""), ("sha256", HASH[:-1]), ("sha256", HASH.upper()), ("sha256", HASH + "\n"),
    ("sha256", hashlib.sha256(b"").hexdigest()), ("sha256", "g" * 64), ("sha256", None),
    ("weight", 0), ("weight", -1), ("weight", 1001), ("weight", "2"), ("weight", True),
    ("weight", None), ("weight", 10**400),
    ("models", []), ("models", "flux"), ("models", [""]), ("models", [1]),
    ("models", ["a"] * (MAX_MODELS + 1)), ("models", ["a" * 129]), ("models", {"flux": 1}),
    ("max_jobs", 0), ("max_jobs", 1.5), ("max_jobs", True), ("max_jobs", "8"), ("max_jobs", -1),
    ("requests_per_minute", 0), ("requests_per_minute", -1), ("requests_per_minute", "60"),
    ("engine_seconds_per_minute", 0), ("engine_seconds_per_minute", False),
    ("expires", "soon"), ("expires", "2027-01-31T00:00:00"), ("expires", 1801353600),
    ("expires", ""), ("expires", "2027-13-01"), ("expires", "20270131"), ("expires", "9" * 100),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_a_wrong_value_is_refused_by_entry_and_field(field: str, value: object) -> None:
    other = {"name": "bob", "sha256": hashlib.sha256(b"bob").hexdigest()}
    with pytest.raises(InvalidSetting) as caught:
        read_keys(file_of(other, {**ENTRY, field: value}))
    assert f"keys[1].{field}" in caught.value.message
    assert HASH not in caught.value.message
    assert HASH[:-1] not in caught.value.message


BAD_FILES = [
    (b"", "is not JSON: line 1, column 1"),
    (b'{"keys": [\n {"name": }]}', "is not JSON: line 2"),
    (b"\xff", "is not JSON"),
    (b"[" * 100_000, "is not JSON"),
    (b"[]", 'one field "keys"'),
    (b"{}", 'one field "keys"'),
    (b'{"keys": [], "version": 1}', 'one field "keys"'),
    (b'{"keys": []}', "from 1 to 256 entries"),
    (b'{"keys": {}}', "from 1 to 256 entries"),
    (b'{"keys": [], "keys": []}', "'keys' twice"),
    (b'{"keys": [7]}', "no object at keys[0]"),
    (file_of({"name": "ann"}), "lacks keys[0].sha256"),
    (file_of({"sha256": HASH}), "lacks keys[0].name"),
    (file_of({**ENTRY, "model": ["flux"]}), "unknown field 'model' in keys[0]"),
    (file_of(ENTRY).replace(b'"ann"', b'"ann", "name": "bob"'), "'name' twice"),
    (file_of({**ENTRY, "weight": math.nan}), "has NaN"),
    (file_of({**ENTRY, "weight": math.inf}), "has Infinity"),
    (file_of(ENTRY, {**ENTRY, "name": "bob"}), "same sha256 in keys[0] and keys[1]"),
    (b" " * (MAX_FILE_BYTES + 1), "at most"),
]


@pytest.mark.parametrize(("raw", "message"), BAD_FILES, ids=[each for _, each in BAD_FILES])
def test_a_file_that_is_not_as_described_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidSetting, match="PREDICTORS_ACCESS_KEYS_FILE") as caught:
        read_keys(raw)
    assert message in caught.value.message
    assert HASH not in caught.value.message


def test_the_number_of_keys_is_bounded() -> None:
    keys = [ApiKey(f"k{i}", digest_of(f"{i}")) for i in range(MAX_KEYS + 1)]
    assert len(read_keys(write_keys(keys[:-1]))) == MAX_KEYS
    with pytest.raises(InvalidSetting, match="from 1 to 256"):
        read_keys(write_keys(keys))


def test_two_keys_of_one_name_may_differ_in_hash_and_expiry_only() -> None:
    first = ApiKey("ann", digest_of("1"), weight=2.0, expires=100.0)
    assert len(read_keys(write_keys([first, ApiKey("ann", digest_of("2"), weight=2.0)]))) == 2
    with pytest.raises(InvalidSetting, match="'ann' in keys\\[0\\] and keys\\[1\\]"):
        read_keys(write_keys([first, ApiKey("ann", digest_of("2"))]))


@given(
    st.builds(
        ApiKey,
        name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}", fullmatch=True),
        digest=st.binary(min_size=32, max_size=32),
        weight=st.floats(0.001, 1000),
        models=st.frozensets(st.text(min_size=1, max_size=20), max_size=3),
        max_jobs=st.integers(0, 10**6),
        requests_per_minute=st.just(0.0) | st.floats(0.001, 10**6),
        engine_seconds_per_minute=st.just(0.0) | st.floats(0.001, 10**6),
        expires=st.just(math.inf) | st.integers(0, 2**32).map(float),
    )
)
def test_what_is_written_is_read_as_the_same_key(key: ApiKey) -> None:
    assert read_keys(write_keys([key])) == (key,)


def test_a_date_expires_with_its_first_moment_in_utc() -> None:
    assert read_expiry("2027-01-31") == read_expiry("2027-01-31T00:00:00Z") == 1801353600.0


def test_a_new_key_has_256_random_bits_and_a_prefix() -> None:
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(key.startswith("vpk_") and len(key) == 4 + 43 for key in keys)


def test_so_much_of_a_key_is_hashed_that_a_longer_one_matches_none() -> None:
    longest = "k" * MAX_KEY_BYTES
    assert digest_of(longest) == hashlib.sha256(longest.encode()).digest()
    assert digest_of(longest + "k") == digest_of(longest + "k" * 10**6)
    assert digest_of(longest + "k") != digest_of(longest)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("weight", "2", 2.0), ("models", "a, b", frozenset("ab")), ("max_jobs", "3", 3)],
)
def test_a_field_is_read_from_the_command_line(name: str, text: str, value: object) -> None:
    assert field_from_text(name, text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [("weight", "x"), ("weight", "nan"), ("max_jobs", "1.5"), ("models", "a,"), ("expires", "x")],
)
def test_a_wrong_field_of_the_command_line_is_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidSetting, match="must be"):
        field_from_text(name, text)


def test_a_key_in_a_traceback_is_its_name() -> None:
    assert repr(ApiKey("ann", digest_of("x"))) == "ApiKey('ann')"
