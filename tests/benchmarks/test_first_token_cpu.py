"""The phases of a first token are timed for a small picture and for text."""

from __future__ import annotations

import pytest

from benchmarks.serving.first_token_cpu import Room, measure

FLOORS = {"floor: base64", "floor: copy of the pixels", "floor: pixels to float32"}
PICTURES = {
    "digest",
    "to the worker",
    "decode",
    "from the worker",
    "prepare",
    "through the workers",
    "file",
}
TEXT = {"parse", "requests", "assemble", "all phases"}


@pytest.fixture(scope="module")
def bench_room() -> Room:
    return Room()


def test_text_has_no_phases_of_pictures(bench_room: Room) -> None:
    found = measure(bench_room, "text", 1)
    assert found.keys() == TEXT
    assert found["all phases"]["cpu_ms"] > 0


@pytest.mark.parametrize(
    ("case", "floor"),
    [("jpeg 64x48", "floor: libjpeg-turbo"), ("png 64x48", "floor: inflate (ISA-L)")],
)
def test_every_phase_of_a_picture_is_timed(bench_room: Room, case: str, floor: str) -> None:
    found = measure(bench_room, case, 1)
    assert found.keys() == TEXT | PICTURES | FLOORS | {floor}
    phases = [found[name]["wall_ms"] for name in found if name in TEXT | PICTURES - {"file"}]
    assert all(ms > 0 for ms in phases)
