"""The adapters that one request asks for, and what they change for the caches: an adapter of the
language model changes keys and values, one of the vision tower the features of pictures.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # which needs torch
    from predictors.chat.adapters.adapter import ChatAdapter

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class AdapterMix:
    """The adapters of one request with their scales, in the order of their digests.

    `language_key` and `vision_key` name the changes of either part: empty where there are none,
    and equal for no two different ones.
    """

    scales: tuple[tuple[ChatAdapter, float], ...] = ()
    language_key: bytes = b""
    vision_key: bytes = b""

    @classmethod
    def of(cls, scales: Iterable[tuple[ChatAdapter, float]]) -> AdapterMix:
        """The mix of different adapters; those of scale 0 change nothing and are left out."""
        kept = sorted(
            ((adapter, scale) for adapter, scale in scales if scale),
            key=lambda pair: (pair[0].digest, pair[0].name),
        )
        language = [pair for pair in kept if pair[0].is_of_language]
        vision = [pair for pair in kept if pair[0].is_of_vision]
        return cls(tuple(kept), _key(language), _key(vision)) if kept else UNADAPTED

    def __contains__(self, adapter: ChatAdapter) -> bool:
        return any(each is adapter for each, _ in self.scales)

    @property
    def names(self) -> str:
        """For logs: the names, comma-separated."""
        return ",".join(adapter.name for adapter, _ in self.scales)


UNADAPTED = AdapterMix()


def _key(scales: Iterable[tuple[ChatAdapter, float]]) -> bytes:
    """Empty without adapters. Digests have one length, so that nothing can shift."""
    parts = [adapter.digest.encode() + struct.pack("<d", scale) for adapter, scale in scales]
    return blake2b(b"".join(parts), digest_size=KEY_BYTES).digest() if parts else b""
