"""The fields of a chat body that hold films and say how their frames are read: parts `video_url`
and `video`, and `fps` and the like of a part and of vLLM's `mm_processor_kwargs` and
`media_io_kwargs`.

Names are those of qwen-vl-utils and vLLM. Numbers are checked for their type here; a model's codec
holds them against the server's limits.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.images.urls import read_data_url, read_film_url
from predictors.protocol.openai.clients import URL_FIELDS
from predictors.protocol.openai.fields import (
    DescribedRule,
    described,
    list_of,
    number,
    object_schema,
    only_values,
    read_fields,
    require,
    said,
    text,
    whole,
)
from predictors.protocol.openai.pixel_fields import (
    AS_SERVED,
    PIXEL_FIELDS,
    PROCESSOR_PIXELS,
    RequestedPixels,
    read_pixels,
    read_processor_pixels,
)

MAX_FRAMES = 2**31 - 1  # largest number that is read; no server reads so many frames
ALL_FRAMES = -1  # `num_frames` as vLLM reads it
MAX_SENT = 1024  # pictures of one film
MAX_FPS = 1000.0
MAX_TOTAL_PIXELS = 2**40


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class RequestedFrames:
    """The frames that a caller asks for, of all films or of one; None asks for nothing."""

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    total_pixels: int | None = None

    def over(self, other: RequestedFrames) -> RequestedFrames:
        """These, and what they leave open as in `other`. `fps` and `num_frames` are one choice."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if given.keys() & {"fps", "num_frames"}:
            other = replace(other, fps=None, num_frames=None)
        return replace(other, **given)


AS_SAMPLED = RequestedFrames()


@dataclass(frozen=True)
class FilmPart:
    """A film in a message: the bytes of a file, or with `is_frames` of one picture per frame, not
    decoded yet."""

    files: tuple[bytes, ...] = field(repr=False)
    is_frames: bool = False
    where: str = field(default="video_url", compare=False)
    """The field that held it, such as `messages[0].content[1].video_url`."""
    frames: RequestedFrames = AS_SAMPLED
    pixels: RequestedPixels = AS_SERVED


FRAME_FIELDS: dict[str, DescribedRule] = {
    "fps": said("Frames per second of a film that are read.", number(0, MAX_FPS, above=True)),
    "num_frames": said(
        "Frames of a film that are read; -1 is all.", whole(2, MAX_FRAMES, or_value=ALL_FRAMES)
    ),
    "min_frames": said("At least so many frames are read.", whole(1, MAX_FRAMES)),
    "max_frames": said("At most so many frames are read.", whole(2, MAX_FRAMES)),
    "total_pixels": said(
        "Most pixels of all frames of a film together.", whole(1, MAX_TOTAL_PIXELS)
    ),
}
_WHOLE_FILM = "films are read from their beginning to their end"
_PART_FRAMES: dict[str, DescribedRule] = {
    **FRAME_FIELDS,
    "nframes": FRAME_FIELDS["num_frames"],  # of qwen-vl-utils
    "sample_fps": FRAME_FIELDS["fps"],  # of frames that were sampled already
    "video_start": only_values(0, why=_WHOLE_FILM),
    "video_end": only_values(why=_WHOLE_FILM),
    "resized_height": only_values(why="use max_pixels"),
    "resized_width": only_values(why="use max_pixels"),
}
_OTHER_NAMES = {"nframes": "num_frames", "sample_fps": "fps"}
FILM_FIELDS = _PART_FRAMES
"""Fields of a part that is a film, besides those for the pixels of its frames."""


def read_frames(read: dict[str, Any], where: str) -> RequestedFrames:
    """Takes the fields about frames out of checked fields. Raises `InvalidRequest` for some that
    contradict each other."""
    found: dict[str, Any] = {}
    for name in list(read):
        if name in _PART_FRAMES:
            own, value = _OTHER_NAMES.get(name, name), read.pop(name)
            if found.setdefault(own, value) != value:
                message = f"{where}: {name} {value:g} and {own} {found[own]:g} disagree"
                raise InvalidRequest(message, param=where)
    frames = RequestedFrames(**found)
    if frames.fps is not None and frames.num_frames is not None:
        raise InvalidRequest(f"{where}: give fps or num_frames, not both", param=where)
    least, most = frames.min_frames, frames.max_frames
    if least is not None and most is not None and least > most:
        message = f"{where}: min_frames {least} is above max_frames {most}"
        raise InvalidRequest(message, param=where)
    return frames


_VIDEO_IO = {name: FRAME_FIELDS[name] for name in ("fps", "num_frames")}


@described(object_schema(_VIDEO_IO))
def _video_io(name: str, value: Any) -> RequestedFrames:
    return read_frames(read_fields(value, _VIDEO_IO, where=name), name)


_MEDIA_IO = {
    "video": _video_io,
    "image": only_values({}, why="pictures are read in full"),
    "audio": only_values({}, why="there is no audio"),
}


@described(object_schema(_MEDIA_IO))
def media_io_kwargs(name: str, value: Any) -> RequestedFrames:
    """vLLM's `media_io_kwargs`."""
    found: RequestedFrames = read_fields(value, _MEDIA_IO, where=name).get("video", AS_SAMPLED)
    return found


_PROCESSOR = {
    **PROCESSOR_PIXELS,
    **FRAME_FIELDS,
    "do_sample_frames": only_values(True, why="frames are picked by fps or num_frames"),
}


@described(object_schema(_PROCESSOR))
def processor_kwargs(name: str, value: Any) -> tuple[RequestedPixels, RequestedFrames]:
    """vLLM's `mm_processor_kwargs`."""
    read = read_fields(value, _PROCESSOR, where=name)
    pixels = read_processor_pixels(read, name)
    return pixels, read_frames(read, name)


MEDIA_FIELDS: dict[str, DescribedRule] = {
    **PIXEL_FIELDS,
    "mm_processor_kwargs": said(
        "vLLM's object of the same bounds and of frames of films.", processor_kwargs
    ),
    "media_io_kwargs": said(
        "vLLM's object that says how frames of films are picked.", media_io_kwargs
    ),
}
"""Fields of a body that apply to all its pictures and films."""


def read_media(read: dict[str, Any]) -> tuple[RequestedPixels, RequestedFrames]:
    """Takes these fields out of a body's checked ones."""
    pixels, frames = read.pop("mm_processor_kwargs", (AS_SERVED, AS_SAMPLED))
    loaded: RequestedFrames = read.pop("media_io_kwargs", AS_SAMPLED)
    return read_pixels(read, pixels), frames.over(loaded)


# -- parts -----------------------------------------------------------------------------------------
_VIDEO_URL: dict[str, DescribedRule] = {"url": text(), **URL_FIELDS}


@described({"anyOf": [{"type": "string"}, object_schema(_VIDEO_URL, "url")]})
def video_url(name: str, value: Any) -> FilmPart:
    if isinstance(value, str):
        value = {"url": value}
    read = read_fields(value, _VIDEO_URL, where=name)
    require(read, "url", where=name)
    files, is_frames = read_film_url(read["url"], param=name, at_most=MAX_SENT)
    return FilmPart(files, is_frames, name)


_FRAME: dict[str, DescribedRule] = {"url": text(), **URL_FIELDS}


@described({"anyOf": [{"type": "string"}, object_schema(_FRAME, "url")]})
def _frame(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        value = {"url": value}
    read = read_fields(value, _FRAME, where=name)
    require(read, "url", where=name)
    return read_data_url(read["url"], param=name)


_FRAMES = list_of(_frame, at_most=MAX_SENT, noun="frames")


@described({"anyOf": [*video_url.schema["anyOf"], {**_FRAMES.schema, "minItems": 2}]})
def video(name: str, value: Any) -> FilmPart:
    """Qwen's own form: one file, or a list of frames."""
    if not isinstance(value, list):
        part: FilmPart = video_url.check(name, value)
        return part
    frames = _FRAMES.check(name, value)
    if len(frames) < 2:
        message = f"{name} is a film of {len(frames)} frames; at least 2 are needed"
        raise InvalidRequest(message, param=name)
    return FilmPart(tuple(frames), is_frames=True, where=name)
