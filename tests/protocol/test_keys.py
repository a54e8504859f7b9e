"""API keys in use: equal work for any key, where a key is looked for, reloading of the file."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from predictors import metrics
from predictors.errors import Unauthorized
from predictors.protocol import keys as keys_module
from predictors.protocol.call import Call
from predictors.protocol.callers import Callers
from predictors.protocol.key_file import ApiKey, digest_of, new_key, write_keys
from predictors.protocol.keys import EXPIRED, MISSING, UNKNOWN, ApiKeys, KeysFile
from predictors.settings import AccessSettings, InvalidSetting

SECRETS = [new_key() for _ in range(5)]
KEYS = [ApiKey(f"k{i}", digest_of(secret)) for i, secret in enumerate(SECRETS)]


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def changed(secret: str, at: int) -> str:
    """The key with another character at one place."""
    letters = list(secret)
    letters[at] = "A" if letters[at] != "A" else "B"
    return "".join(letters)


# -- comparisons -----------------------------------------------------------------------------------
PRESENTED = {
    "right, first of the file": SECRETS[0],
    "right, last of the file": SECRETS[-1],
    "first byte wrong": changed(SECRETS[0], 0),
    "last byte wrong": changed(SECRETS[0], -1),
    "unknown": new_key(),
    "empty of meaning": "x",
    "very long": "x" * 100_000,
    "not ASCII": "\xff\xfe",
}


@pytest.mark.parametrize("kind", PRESENTED)
def test_the_number_of_comparisons_is_the_same_for_any_key(kind: str) -> None:
    keys = ApiKeys(KEYS)
    found = keys.find(PRESENTED[kind])
    assert keys.comparisons == len(KEYS)
    assert (found is not None) is kind.startswith("right")


def test_no_digest_is_compared_in_any_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    real = __import__("hmac").compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        seen.append((len(a), len(b)))
        return bool(real(a, b))

    monkeypatch.setattr("predictors.protocol.keys.hmac.compare_digest", counted)
    keys = ApiKeys(KEYS)
    for secret in PRESENTED.values():
        keys.find(secret)
    assert len(seen) == keys.comparisons == len(KEYS) * len(PRESENTED)
    assert set(seen) == {(32, 32)}


def test_of_a_hundred_thousand_wrong_keys_none_is_let_in() -> None:
    keys, random_bits = ApiKeys(KEYS), random.Random(16)
    let_in = 0
    for i in range(100_000):
        secret = SECRETS[i % len(SECRETS)]
        wrong = changed(secret, random_bits.randrange(len(secret))) if i % 2 else new_key()
        let_in += keys.find(wrong) is not None
    assert let_in == 0
    assert keys.comparisons == 100_000 * len(KEYS)
    assert all(keys.find(secret) for secret in SECRETS)


# -- headers ---------------------------------------------------------------------------------------
GOOD_HEADERS = [
    {"authorization": f"Bearer {SECRETS[0]}"},
    {"authorization": f"bearer {SECRETS[0]}"},
    {"authorization": f"BEARER   {SECRETS[0]} "},
    {"x-api-key": SECRETS[0]},
    {"x-api-key": f" {SECRETS[0]}\t"},
    {"x-api-key": SECRETS[0], "authorization": "Basic dXNlcjpwYXNz"},
    {"x-api-key": SECRETS[0], "authorization": "Bearer of-a-gateway"},
    {"x-api-key": "", "authorization": f"Bearer {SECRETS[0]}"},
]


@pytest.mark.parametrize("headers", GOOD_HEADERS, ids=range(len(GOOD_HEADERS)))
def test_a_key_is_found_in_either_header_and_taken_out(headers: dict[str, str]) -> None:
    call = Call({**headers, "accept": "*/*"}, protocol="v2_rest")
    assert ApiKeys(KEYS).check(call).name == "k0"
    assert call == {"accept": "*/*"}


BAD_HEADERS = [
    ({}, MISSING),
    ({"authorization": ""}, MISSING),
    ({"authorization": "Bearer"}, MISSING),
    ({"authorization": "Bearer "}, MISSING),
    ({"authorization": SECRETS[0]}, MISSING),
    ({"authorization": f"Basic {SECRETS[0]}"}, MISSING),
    ({"authorization": f"Bearer{SECRETS[0]}"}, MISSING),
    ({"authorization": f"Bearer\t{SECRETS[0]}"}, MISSING),
    ({"proxy-authorization": f"Bearer {SECRETS[0]}"}, MISSING),
    ({"cookie": SECRETS[0]}, MISSING),
    ({"authorization": f"Bearer {SECRETS[0]}, Bearer {SECRETS[0]}"}, UNKNOWN),
    ({"authorization": f"Bearer {SECRETS[0]} {SECRETS[1]}"}, UNKNOWN),
    ({"authorization": f'Bearer "{SECRETS[0]}"'}, UNKNOWN),
    ({"x-api-key": f"Bearer {SECRETS[0]}"}, UNKNOWN),
    ({"x-api-key": "wrong", "authorization": f"Bearer {SECRETS[0]}"}, UNKNOWN),
    ({"x-api-key": SECRETS[0].upper()}, UNKNOWN),
    ({"x-api-key": SECRETS[0][:-1]}, UNKNOWN),
    ({"x-api-key": SECRETS[0] + "A"}, UNKNOWN),
    ({"x-api-key": KEYS[0].digest.hex()}, UNKNOWN),
]


@pytest.mark.parametrize(("headers", "message"), BAD_HEADERS, ids=range(len(BAD_HEADERS)))
def test_any_other_key_is_refused_without_being_named(
    headers: dict[str, str], message: str
) -> None:
    with pytest.raises(Unauthorized) as caught:
        ApiKeys(KEYS).check(Call(headers, protocol="v2_rest"))
    assert caught.value.message == message


def test_an_expired_key_is_refused_from_its_moment_on() -> None:
    now = 100.0
    keys = ApiKeys([ApiKey("ann", digest_of("secret"), expires=101.0)], clock=lambda: now)
    assert keys.check(bearer("secret")).name == "ann"
    now = 101.0
    with pytest.raises(Unauthorized, match="expired") as caught:
        keys.check(bearer("secret"))
    assert caught.value.message == EXPIRED
    now = 50.0  # a clock that was set back
    assert keys.check(bearer("secret")).name == "ann"


def test_refused_keys_are_counted_by_reason() -> None:
    def counts() -> list[float]:
        series = metrics.refused_keys_total
        return [series.labels(reason)._value.get() for reason in metrics.REFUSED_KEYS]

    before = counts()
    keys = ApiKeys([ApiKey("ann", digest_of("old"), expires=1.0)])
    for headers in ({}, bearer("x"), bearer("y"), bearer("old")):
        with pytest.raises(Unauthorized):
            keys.check(headers)
    assert [b - a for a, b in zip(before, counts(), strict=True)] == [1.0, 2.0, 1.0]


# -- the file --------------------------------------------------------------------------------------
def write_whole(path: Path, raw: bytes) -> None:
    """Another file under the same name, as `keys add` writes it."""
    part = path.with_suffix(".part")
    part.write_bytes(raw)
    part.replace(path)


def write_in_place(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))  # coarse clocks of file systems


def swap_link(path: Path, raw: bytes) -> None:
    """As Kubernetes updates a mounted Secret: `..data` points to another folder."""
    data = path.parent / "..data"
    number = int(data.readlink().name) + 1 if data.is_symlink() else 0
    folder = path.parent / str(number)
    folder.mkdir()
    (folder / path.name).write_bytes(raw)
    fresh = path.parent / "..data_tmp"
    fresh.symlink_to(folder.name)
    fresh.replace(data)
    if not path.is_symlink():
        path.symlink_to(f"..data/{path.name}")


WRITERS = {"whole": write_whole, "in place": write_in_place, "Secret": swap_link}


class Following:
    """`Callers` with a keys file; `turn` waits until it has looked at the file once more."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._looked = asyncio.Event()
        self._looks = 0
        real, loop = KeysFile.has_changed, asyncio.get_running_loop()

        def has_changed(file: KeysFile) -> bool:
            found = real(file)
            loop.call_soon_threadsafe(self._count)
            return found

        monkeypatch.setattr(KeysFile, "has_changed", has_changed)
        self.callers = Callers(AccessSettings(keys_file=str(path), reload_s=0.05))

    def _count(self) -> None:
        self._looks += 1
        self._looked.set()

    async def turn(self) -> None:
        """Wait for two looks: what the first one found is in force by the second."""
        until = self._looks + 2
        while self._looks < until:
            self._looked.clear()
            await asyncio.wait_for(self._looked.wait(), 60)

    def accepts(self, secret: str) -> bool:
        call = Call(bearer(secret), protocol="v2_rest")
        return self.callers.refusal(call, "/v2") is None


@pytest.mark.parametrize("writer", WRITERS)
def test_a_changed_file_is_read_again_and_a_bad_one_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, writer: str
) -> None:
    write, path = WRITERS[writer], tmp_path / "keys.json"
    write(path, write_keys(KEYS[:1]))

    async def check() -> None:
        following = Following(path, monkeypatch)
        following.callers.start()
        accepts: Callable[[str], bool] = following.accepts
        assert (accepts(SECRETS[0]), accepts(SECRETS[1])) == (True, False)
        write(path, write_keys(KEYS[1:3]))
        await following.turn()
        assert [accepts(secret) for secret in SECRETS[:3]] == [False, True, True]
        assert metrics.keys_loaded._value.get() == 2
        digits = b'{"keys": [%b]}' % (b"1" * 5000)
        for bad in (b"", b'{"keys": []}', write_keys(KEYS[1:2])[:-20], digits):
            write(path, bad)
            await following.turn()
            assert [accepts(secret) for secret in SECRETS[:3]] == [False, True, True]
            assert metrics.keys_reload_success._value.get() == 0
        write(path, write_keys(KEYS[:1]))
        await following.turn()
        assert [accepts(secret) for secret in SECRETS[:3]] == [True, False, False]
        assert metrics.keys_reload_success._value.get() == 1
        await following.callers.stop()

    with caplog.at_level(logging.INFO):
        asyncio.run(check())
    assert caplog.text.count("the API keys were not reloaded, the old ones stay") == 4
    assert caplog.text.count("reloaded 2 API keys") == 1
    assert not any(secret in caplog.text for secret in SECRETS)
    assert not any(key.digest.hex() in caplog.text for key in KEYS)


def test_a_file_that_is_gone_is_reported_once_and_read_when_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(write_keys(KEYS[:1]))

    async def check() -> None:
        following = Following(path, monkeypatch)
        following.callers.start()
        path.unlink()
        await following.turn()
        await following.turn()
        assert following.accepts(SECRETS[0])
        path.write_bytes(write_keys(KEYS[1:2]))
        await following.turn()
        assert not following.accepts(SECRETS[0])
        assert following.accepts(SECRETS[1])
        await following.callers.stop()

    asyncio.run(check())
    assert caplog.text.count("can't be read") == 1


@pytest.mark.parametrize("fault", ["pipe", "rights", "bug"])
def test_no_fault_ends_the_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(write_keys(KEYS[:1]))

    async def check() -> None:
        following = Following(path, monkeypatch)
        following.callers.start()
        with monkeypatch.context() as patched:
            if fault == "pipe":
                path.unlink()
                os.mkfifo(path)
            elif fault == "rights":  # root reads any file, so the refusal is made here
                patched.setattr(keys_module, "read_mounted", deny)
                path.write_bytes(write_keys(KEYS[1:2]))
            else:
                patched.setattr(keys_module, "read_keys", broken)
                path.write_bytes(write_keys(KEYS[1:2]))
            await following.turn()
            await following.turn()
            assert following.accepts(SECRETS[0])
            assert metrics.keys_reload_success._value.get() == 0
        if fault == "rights":
            path.chmod(0o640)  # changes neither content nor time of content
        else:
            write_whole(path, write_keys(KEYS[1:2]))
        await following.turn()
        assert not following.accepts(SECRETS[0])
        assert following.accepts(SECRETS[1])
        assert metrics.keys_reload_success._value.get() == 1
        await following.callers.stop()

    asyncio.run(check())
    assert caplog.text.count("the API keys were not reloaded, the old ones stay") == 1


def deny(path: Path, most: int) -> tuple[bytes, os.stat_result]:
    raise PermissionError(13, "Permission denied")


def broken(raw: bytes) -> tuple[ApiKey, ...]:
    raise RuntimeError("a bug")


def test_a_start_without_a_usable_file_fails(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="can't be read: No such file") as caught:
        Callers(AccessSettings(keys_file=str(tmp_path / "none.json")))
    assert str(tmp_path) not in caught.value.message
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InvalidSetting, match='one field "keys"'):
        Callers(AccessSettings(keys_file=str(tmp_path / "bad.json")))
