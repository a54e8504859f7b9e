"""Films for tests: small clips that PyAV writes, and requests with them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from predictors.chat.film import Film, FilmOptions
from predictors.chat.request import (
    ChatRequest,
    Message,
    Picture,
)
from tests.chat.room import GREEDY

ENCODERS = {
    "h264": ("libx264", "mp4"),
    "mov": ("libx264", "mov"),
    "hevc": ("libx265", "mp4"),
    "vp8": ("libvpx", "webm"),
    "vp9": ("libvpx-vp9", "webm"),
    "av1": ("libsvtav1", "mp4"),
}
QUIET = {"libx265": {"x265-params": "log-level=none"}}


@dataclass(frozen=True)
class Clip:
    """`frames` of a film of `width` x `height` pixels at `rate`, in which a bar moves over a
    changing ground. x265 writes beyond its memory for sides below 64."""

    kind: str = "h264"
    frames: int = 12
    width: int = 48
    height: int = 32
    rate: Fraction = Fraction(8)

    def pictures(self) -> list[np.ndarray[Any, Any]]:
        """Its frames, uint8 (height, width, 3)."""
        found = []
        for i in range(self.frames):
            picture = np.full((self.height, self.width, 3), (i * 19 % 200, 60, 120), np.uint8)
            at = i * 5 % (self.width - 8)
            picture[:, at : at + 8] = (250, 250 - 20 * i % 250, 30)
            found.append(picture)
        return found

    def file(self, times: Sequence[int] | None = None, **options: str) -> bytes:
        """The film as a file. `times` are the frames' in thousandths of a second."""
        encoder, container = ENCODERS[self.kind]
        raw = io.BytesIO()
        import av  # an extra that a GPU machine lacks

        with av.open(raw, "w", format=container, options=options) as out:
            stream: Any = out.add_stream(encoder, rate=self.rate, options=QUIET.get(encoder, {}))
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            if times is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            for i, picture in enumerate(self.pictures()):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[i], Fraction(1, 1000)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return raw.getvalue()


def film(clip: Clip, **options: Any) -> Film:
    return Film((clip.file(),), options=FilmOptions(**options))


def film_chat(*parts: str | Film | Picture, max_tokens: int = 6) -> ChatRequest:
    """A request of one user message."""
    return ChatRequest((Message("user", parts),), GREEDY, seed=0, max_tokens=max_tokens)
