"""Files that an operator mounts: regular ones alone, of which a bounded part is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from predictors.protocol.certificates import Certificates
from predictors.protocol.key_file import read_keys
from predictors.protocol.keys import KeysFile
from predictors.protocol.mounted_files import read_mounted
from predictors.settings import AccessSettings, InvalidSetting, TlsSettings

OTHERS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "nothing": lambda path: None,
    "link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    OTHERS[kind](path)
    with pytest.raises(OSError, match=r"\w"):
        read_mounted(path, 10)
    with pytest.raises(InvalidSetting, match="can't be read"):
        KeysFile(AccessSettings(keys_file=str(path))).read()
    with pytest.raises(InvalidSetting, match="can't be read"):
        Certificates(TlsSettings(cert_file=str(path), key_file=str(path)))


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_refused_leaves_no_descriptor_open(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    OTHERS[kind](path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(OSError, match=r"\w"):
            read_mounted(path, 10)
    assert len(os.listdir("/proc/self/fd")) < before + 20


def test_a_bounded_part_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert [read_mounted(path, most)[0] for most in (3, 10, 11)] == [b"012", *[b"0123456789"] * 2]


DIGITS = b"1" * 5000
DAMAGED = {
    "nothing": b"",
    "zeros": bytes(100),
    "UTF-16": '{"keys": []}'.encode("utf-16"),
    "Latin-1": b'{"keys": "\xff"}',
    "brackets": b"[" * 100_000,
    "open brackets of objects": b'{"keys":' * 50_000,
    "a number of 5,000 digits": b'{"keys": [%b]}' % DIGITS,
    "a weight of 5,000 digits": b'{"keys": [{"name": "a", "sha256": "b", "weight": %b}]}' % DIGITS,
    "a power": b'{"keys": [1e999]}',
    "no number": b'{"keys": [NaN]}',
    "no key": b'{"keys": [{}]}',
    "a surrogate": b'{"keys": [{"name": "\\ud800", "sha256": "b"}]}',
    "60,000 fields and one of them twice": b'{%b,"0":1}'
    % b",".join(b'"%d":1' % i for i in range(60_000)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_key_files_are_refused_as_settings(name: str) -> None:
    with pytest.raises(InvalidSetting):
        read_keys(DAMAGED[name])
