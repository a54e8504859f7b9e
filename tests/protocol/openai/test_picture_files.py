"""Pictures held for their addresses: how long, how many, and under which names."""

from __future__ import annotations

import re
from typing import Any

import pytest

from predictors.errors import Gone, InvalidRequest, NotFound, TooLarge
from predictors.protocol.openai.picture_files import MAX_FILES, PictureFiles
from predictors.settings import InvalidSetting, ServerSettings
from tests.fakes import ScriptedClock

BASE = "https://pictures.example.com"


def held(clock: ScriptedClock | None = None, **settings: Any) -> PictureFiles:
    own = ServerSettings(**{"public_url": BASE, **settings})
    return PictureFiles(own, clock or ScriptedClock())


def name_of(address: str) -> str:
    return address.rpartition("/")[2]


def test_an_address_leads_to_its_picture_and_says_the_format() -> None:
    files = held()
    one, other = files.put([b"one", b"other"], "webp")
    assert one.startswith(f"{BASE}/v1/images/files/")
    assert one.endswith(".webp")
    assert (files.get(name_of(one)).file, files.get(name_of(other)).file) == (b"one", b"other")
    assert files.get(name_of(one)).kind == "webp"


def test_names_have_192_random_bits() -> None:
    files = held()
    names = {name_of(address) for _ in range(64) for address in files.put([b"x"], "png")}
    assert len(names) == 64
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}\.png", name) for name in names)


@pytest.mark.parametrize(
    "base", [f"{BASE}/", f"{BASE}/flux/", "http://127.0.0.1:8080", "http://[::1]:8080"]
)
def test_the_base_address_may_have_a_port_and_a_path(base: str) -> None:
    (address,) = held(public_url=base).put([b"x"], "png")
    assert address.startswith(f"{base.rstrip('/')}/v1/images/files/")


@pytest.mark.parametrize(
    "base",
    [
        "pictures.example.com",
        "ftp://x",
        "https://",
        "https://a b",
        f"{BASE}?x=1",
        f"{BASE}#x",
        "https://user:pass@host",
        "javascript:alert(1)",
        "https://a\n",
        "https://a/<script>",
    ],
)
def test_a_base_address_that_is_none_ends_the_start(base: str) -> None:
    with pytest.raises(InvalidSetting, match="PREDICTORS_SERVER_PUBLIC_URL"):
        held(public_url=base)


def test_without_a_base_address_none_is_offered() -> None:
    held().check_offered()
    with pytest.raises(InvalidRequest, match="PREDICTORS_SERVER_PUBLIC_URL") as refused:
        held(public_url="").check_offered()
    assert refused.value.param == "response_format"


def test_an_expired_picture_is_gone_and_its_memory_free() -> None:
    clock = ScriptedClock()
    files = held(clock, picture_url_s=60.0)
    (address,) = files.put([b"x" * 1000], "png")
    clock.advance(59.9)
    assert files.get(name_of(address)).file == b"x" * 1000
    clock.advance(0.1)
    files.drop_expired()
    assert files._num_bytes == 0
    with pytest.raises(Gone, match="expired"):
        files.get(name_of(address))


def test_the_oldest_pictures_make_room_and_say_so() -> None:
    files = held(picture_url_bytes=2**20)
    half = bytes(2**19)
    first, second = files.put([half, half], "png")
    (third,) = files.put([b"x"], "png")
    with pytest.raises(Gone, match="made room"):
        files.get(name_of(first))
    assert files.get(name_of(second)).file == half
    assert files.get(name_of(third)).file == b"x"


def test_pictures_that_could_never_be_held_together_are_refused() -> None:
    files = held(picture_url_bytes=2**20)
    (kept,) = files.put([b"x"], "png")
    with pytest.raises(TooLarge, match=r"1048577 bytes; at most 1048576"):
        files.put([bytes(2**20), b"x"], "png")
    assert files.get(name_of(kept)).file == b"x"


def test_the_number_of_pictures_and_of_remembered_names_is_bounded() -> None:
    files = held()
    (first,) = files.put([b"x"], "png")
    for _ in range(2 * MAX_FILES // 16 + 1):
        files.put([b"x"] * 16, "png")
    assert len(files._held) == MAX_FILES
    assert len(files._gone) == MAX_FILES
    with pytest.raises(NotFound, match="expired long ago"):
        files.get(name_of(first))


@pytest.mark.parametrize("name", ["", "x.png", "../../etc/passwd", "a" * 10_000])
def test_a_name_that_was_never_given_is_not_found(name: str) -> None:
    with pytest.raises(NotFound) as refused:
        held().get(name)
    assert not isinstance(refused.value, Gone)
