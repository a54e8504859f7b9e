"""GIF files: the size in the header, and the one frame of a still picture without its comments.

A file is walked by its blocks (GIF89a, appendix A), of which there may be a bounded number.
"""

from __future__ import annotations

from predictors.errors import InvalidRequest
from predictors.protocol.images.kinds import CleanFile

MAX_BLOCKS = 2**18  # of data: 64 MiB, if they are full
MAX_HEADER_BLOCKS = 4096  # of data before the frame that are searched for its size

_EXTENSION, _FRAME, _END = 0x21, 0x2C, 0x3B
_CONTROL = 0xF9
_GLOBAL_TABLE = 13  # where it begins


class _Blocks:
    """Walks a file. `left` bounds how many blocks of data may still be skipped."""

    def __init__(self, raw: bytes, left: int) -> None:
        self._raw = raw
        self.left = left
        self.position = _GLOBAL_TABLE + _table_bytes(raw[10]) if len(raw) > 10 else len(raw)

    def next(self) -> int:
        """The kind of the block at `position`, 0 at the end of the file."""
        while self.position < len(self._raw) and self._raw[self.position] == 0:
            self.position += 1  # some writers pad
            self.spend()
        return self._raw[self.position] if self.position < len(self._raw) else 0

    def skip_extension(self) -> None:
        self.position += 2
        self._skip_data()

    def skip_frame(self) -> None:
        flags = self._raw[self.position + 9 : self.position + 10] or b"\0"
        self.position += 11 + _table_bytes(flags[0])
        self._skip_data()

    def _skip_data(self) -> None:
        while self.position < len(self._raw) and self._raw[self.position]:
            self.position += 1 + self._raw[self.position]
            self.spend()
        self.position += 1

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise InvalidRequest(f"is a GIF picture of more than {MAX_BLOCKS} blocks")


def gif_size(raw: bytes) -> tuple[int, int] | None:
    """The size of the screen or of the first frame where that is larger; None where the header
    can't be read."""
    blocks = _Blocks(raw, MAX_HEADER_BLOCKS)
    try:
        while (kind := blocks.next()) == _EXTENSION:
            blocks.skip_extension()
    except InvalidRequest:
        return None
    at = blocks.position
    if kind != _FRAME or at + 10 > len(raw):
        return None
    left, top, width, height = (_short(raw, at + i) for i in (1, 3, 5, 7))
    return max(left + width, _short(raw, 6)), max(top + height, _short(raw, 8))


def clean_gif(raw: bytes) -> CleanFile:
    """The header and the one frame. Raises `InvalidRequest` for several frames, none or too many
    blocks."""
    blocks = _Blocks(raw, MAX_BLOCKS)
    header, control, frame = raw[: blocks.position], b"", b""
    num_frames = 0
    while (kind := blocks.next()) in (_EXTENSION, _FRAME):
        start = blocks.position
        if kind == _EXTENSION:
            blocks.skip_extension()
            if not num_frames and raw[start + 1 : start + 2] == bytes([_CONTROL]):
                control = raw[start : blocks.position]
            continue
        blocks.skip_frame()
        num_frames += 1
        frame = frame or raw[start : blocks.position]
    if num_frames > 1:
        raise InvalidRequest(f"is an animation of {num_frames} frames; send a single picture")
    if not num_frames:
        raise InvalidRequest("is a GIF picture whose header is damaged")
    return CleanFile(b"".join([header, control, frame, bytes([_END])]), 1)


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _short(raw: bytes, start: int) -> int:
    return int.from_bytes(raw[start : start + 2], "little")
