"""Films of chat requests and their sizes: frozen values, no wire formats and no tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from predictors.errors import InvalidRequest

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class FilmSize:
    """The size in pixels at which the frames of a film were read, after resizing, how many, how
    many in a second on average, and the prompt tokens of all."""

    width: int
    height: int
    frames: int
    fps: float
    tokens: int


@dataclass(frozen=True, slots=True)
class FilmOptions:
    """How a caller wants the frames of a film read; None takes the checkpoint's or the server's.

    `fps` are picked in a second, or `num_frames` of the whole film (`ALL_FRAMES`: all); of a film
    of pictures `fps` says how many are for a second. Pixels are those of one frame, and
    `total_pixels` those of every second frame together, as for qwen-vl-utils.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Film:
    """A film as the caller sent it, not yet decoded or checked: one file, or with `is_frames` a
    picture file per frame."""

    files: tuple[bytes, ...] = field(repr=False)
    is_frames: bool = False
    options: FilmOptions = FilmOptions()
    where: str = field(default="video", compare=False)
    row: int | None = field(default=None, compare=False)

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.files))

    def digest(self) -> bytes:
        """128-bit hash of the files."""
        kind = b"frames" if self.is_frames else b"film"
        return file_digest(b"".join([kind, *map(file_digest, self.files)]))

    def named_in_errors(self) -> AbstractContextManager[None]:
        """Adds the film's field and row to an `InvalidRequest` of the block that has none."""
        return named_in_errors(self.where, self.row)


def file_digest(raw: bytes) -> bytes:
    """128 bits of a file's SHA-256, for which processors have instructions: half the time of
    BLAKE2b."""
    return hashlib.sha256(raw).digest()[:DIGEST_BYTES]


@contextmanager
def named_in_errors(where: str, row: int | None) -> Iterator[None]:
    """Adds the field `where` and the row to an `InvalidRequest` of the block that has none."""
    try:
        yield
    except InvalidRequest as error:
        if error.param is not None:
            raise
        message = f"{where}: {error.message}"
        raise type(error)(message, param=where, row=row) from error
