"""The engines and the reference of tests/chat, for the tests of Qwen2.5-VL."""

from __future__ import annotations

from tests.chat.conftest import (
    hub_checkpoint,
    one_thread,
    reference,
    room,
    wild,
    wild_checkpoint,
)

__all__ = ["hub_checkpoint", "one_thread", "reference", "room", "wild", "wild_checkpoint"]
