"""Decodes untrusted films to frames in shared memory, with PyAV's FFmpeg.

The file's first bytes choose one of two demuxers, and only the decoders of `DECODERS` are allowed.
Sizes, lengths and times are checked before frames are decoded, and again on the frames: a header
may lie. Messages of the library are never passed on.
"""

from __future__ import annotations

import heapq
import importlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.films.entries import check_entry_counts
from predictors.protocol.films.orientation import is_sideways, turn_of
from predictors.protocol.films.wholeness import check_whole
from predictors.protocol.images.kinds import MATROSKA, MP4, UNKNOWN, Kind, film_kind
from predictors.protocol.named_fields import naming_field
from predictors.settings import FilmLimits
from predictors.workers.messages import SharedMemory

EXTRA = "vision-predictors[films]"
ACCEPTED = "MP4, MOV, WebM or Matroska"
CODECS = {"h264": "H.264", "hevc": "HEVC", "vp8": "VP8", "vp9": "VP9", "av1": "AV1"}
"""The codecs that are read, by FFmpeg's names."""
DECODERS = "h264,hevc,vp8,vp9,libdav1d"
DEMUXERS = {MP4: "mov", MATROSKA: "matroska"}
MAX_STREAMS = 16
PROBED_BYTES = 2**20  # that FFmpeg may read to find what a track holds
MAX_STORED = 250_000  # frames of a file
WRONG_RATE = 1.1  # times the rate of the frames' own times: no rate that a header may tell
LEAST_PART = 0.8  # of a file's length that its frames last, where their number is not told
ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Exceptions of PyAV for malicious or damaged films, beside its own."""


@dataclass(frozen=True, slots=True)
class FilmFacts:
    """The frames of a film's file: how many, `width` x `height` pixels as they are to be seen, and
    how many in a second on average."""

    frames: int
    fps: float
    width: int
    height: int

    @property
    def duration_s(self) -> float:
        return self.frames / self.fps


@dataclass(frozen=True, slots=True)
class FilmFrames:
    """Frames in shared memory, one after the other: `height` rows of `width` pixels, uint8, of red,
    green and blue. `decoded` are those of the file up to the last one."""

    count: int
    width: int
    height: int
    memory: SharedMemory
    decoded: int = 0


def check_duration(frames: int, fps: float, limits: FilmLimits) -> None:
    """Raise `InvalidRequest` for a film of so many frames that lasts too long."""
    if frames / fps > limits.max_duration_s:
        raise InvalidRequest(
            f"lasts {frames / fps:.5g} s; at most {limits.max_duration_s:g} are taken"
        )


def probe_frames(
    raw: bytes, limits: FilmLimits, *, param: str = "video", row: int | None = None
) -> FilmFacts:
    """Counts the frames and decodes the first one. Raises `TooLarge` for too many bytes and
    `InvalidRequest` for anything else, naming `param` and `row`."""
    with naming_field(param, row):
        kind = _check_file(raw, limits)
        check_whole(raw, kind)
        check_entry_counts(raw, kind)
        with _opened(kind, raw, limits) as (container, stream):
            times, unit = _times(container, stream, kind, limits)
            fps = _rate(times, unit, stream.average_rate, kind)
            check_duration(len(times), fps, limits)
        with _opened(kind, raw, limits) as (container, stream):
            first = next(_frames(container, stream, kind, limits), None)
            if first is None:
                raise InvalidRequest(f"is {kind.name} of which no frame can be decoded")
            width, height = first.width, first.height
            if is_sideways(turn_of(first)):
                width, height = height, width
        return FilmFacts(len(times), fps, width, height)


def decode_frames(
    raw: bytes,
    indices: Sequence[int],
    limits: FilmLimits,
    *,
    param: str = "video",
    row: int | None = None,
) -> FilmFrames:
    """The frames with these ascending `indices`, upright. If the file ends before the last one, the
    `decoded` tell how many there are. Raises as `probe_frames`."""
    with naming_field(param, row):
        kind = _check_file(raw, limits)
        wanted, memory, size, count, held = list(indices), SharedMemory.empty(), None, 0, 0
        upright: tuple[int, int] | None = None
        with _opened(kind, raw, limits) as (container, stream):
            for frame in _frames(container, stream, kind, limits):
                if size not in (None, (frame.width, frame.height)):
                    raise InvalidRequest(
                        f"changes its size from {size[0]}x{size[1]} to {frame.width}x"
                        f"{frame.height} pixels at frame {count}"
                    )
                size = (frame.width, frame.height)
                while held < len(wanted) and wanted[held] == count:
                    if frame.is_corrupt:
                        raise InvalidRequest(f"is damaged at frame {count}")
                    before, (upright, pixels) = upright, _upright(frame)
                    if before not in (None, upright):
                        raise InvalidRequest(f"is turned in another way from frame {count} on")
                    memory.append(pixels)
                    held += 1
                count += 1
                if held == len(wanted) and upright is not None:
                    return FilmFrames(held, *upright, memory, count)
        memory.close()
        return FilmFrames(0, 0, 0, SharedMemory.empty(), count)


# -- file ------------------------------------------------------------------------------------------
def _check_file(raw: bytes, limits: FilmLimits) -> Kind:
    if not raw:
        raise InvalidRequest("is empty")
    if len(raw) > limits.max_bytes:
        raise TooLarge(f"has {len(raw)} bytes; at most {limits.max_bytes} are taken")
    kind = film_kind(raw)
    if kind not in DEMUXERS:
        name = "no film of a known kind" if kind is UNKNOWN else kind.name
        raise InvalidRequest(f"is {name}; taken are films in {ACCEPTED}")
    return kind


@contextmanager
def _opened(kind: Kind, raw: bytes, limits: FilmLimits) -> Iterator[tuple[Any, Any]]:
    """The container and its video track, with a decoder that is bounded and has one thread."""
    try:
        av = importlib.import_module("av")  # only workers load it
    except ImportError as error:
        problem = f"is {kind.name}, and this server has no decoder of films"
        raise InvalidRequest(f"{problem} (its operator can install {EXTRA})") from error
    options = {
        "codec_whitelist": DECODERS,
        "protocol_whitelist": "none",  # nothing beside the file is opened
        "max_streams": str(MAX_STREAMS),
        "probesize": str(PROBED_BYTES),
    }
    if kind is MATROSKA:
        options["fflags"] = "+ignidx"  # cues in falling order take a quadratic time
    broken = f"is {kind.name} whose header is damaged, cut short or of a form that is not read"
    try:
        container = av.open(
            BytesIO(raw), format=DEMUXERS[kind], container_options=options, metadata_errors="ignore"
        )
    except MemoryError:
        raise
    except (av.FFmpegError, *ERRORS) as error:
        raise InvalidRequest(broken) from error
    with container:
        yield container, _track(container, kind, limits)


def _track(container: Any, kind: Kind, limits: FilmLimits) -> Any:
    """The first video track that is no cover picture."""
    tracks = [s for s in container.streams.video if not int(s.disposition) & _COVER]
    if not tracks:
        others = len(container.streams)
        raise InvalidRequest(f"is {kind.name} without a video track ({others} of other kinds)")
    stream = tracks[0]
    decoder = stream.codec_context
    codec = None if decoder is None else decoder.codec.canonical_name
    if codec not in CODECS:
        held = "an unknown codec" if codec is None else codec
        read = ", ".join(CODECS.values())
        raise InvalidRequest(f"is {kind.name} of {held}; read are {read}")
    _check_size(stream.width, stream.height, limits)
    nothing = importlib.import_module("av.stream").Discard.all
    for other in container.streams:
        if other.index != stream.index:
            other.discard = nothing
    decoder.thread_count, decoder.thread_type = 1, "NONE"
    decoder.options = {"max_pixels": str(limits.max_frame_pixels)}
    return stream


_COVER = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC


def _check_size(width: int, height: int, limits: FilmLimits) -> None:
    if min(width, height) < 1:
        raise InvalidRequest(f"has frames of {width}x{height} pixels, which is no picture")
    if width * height > limits.max_frame_pixels:
        most = f"at most {limits.max_frame_pixels} are taken"
        raise InvalidRequest(f"has frames of {width}x{height} pixels, {width * height}; {most}")


# -- frames ----------------------------------------------------------------------------------------
def _times(container: Any, stream: Any, kind: Kind, limits: FilmLimits) -> tuple[list[int], float]:
    """The times of all frames as they lie in the file, and the seconds of their unit."""
    times: list[int] = []
    seen = 0
    is_vp8 = stream.codec_context.codec.canonical_name == "vp8"
    for packet in _packets(container, stream, kind, limits):
        seen += bool(packet.size)
        if not _is_shown(packet, is_vp8):
            continue
        found = packet.dts if packet.pts is None else packet.pts
        if found is None:
            raise InvalidRequest(f"is {kind.name} whose frames have no times")
        times.append(found)
    if not times:
        raise InvalidRequest(f"is {kind.name} without frames")
    ends_s, told_s = max(times) * float(stream.time_base), (container.duration or 0) / 1e6
    if kind is MATROSKA and ends_s < LEAST_PART * told_s:
        raise InvalidRequest(
            f"is {kind.name} that is cut short: its header tells {told_s:.1f} s, its frames end "
            f"after {ends_s:.1f} s"
        )
    if stream.frames > seen + 1:
        raise InvalidRequest(
            f"is {kind.name} that is cut short: {seen} of {stream.frames} frames are there"
        )
    return times, float(stream.time_base)


def _rate(times: Sequence[int], unit: float, told: Any, kind: Kind) -> float:
    """Frames in a second on average: as the header tells, unless the frames' times contradict."""
    if len(times) < 2:
        raise InvalidRequest(f"is {kind.name} of one frame; send that as a picture")
    span = (max(times) - min(times)) * unit
    if not span > 0:
        raise InvalidRequest(f"is {kind.name} whose {len(times)} frames all have the same time")
    measured = (len(times) - 1) / span
    stated = float(told) if told else 0.0
    is_right = measured / WRONG_RATE <= stated <= measured * WRONG_RATE
    return stated if is_right else measured


def _frames(container: Any, stream: Any, kind: Kind, limits: FilmLimits) -> Iterator[Any]:
    """The decoded frames in the order in which they are seen, within the limits.

    A film may begin with frames that can't be decoded, as one that was cut out of another does. One
    that is missing behind these is an error: those after it would count as earlier ones.
    """
    count, expected = 0, list[int]()  # a heap of the times of frames that did not come yet
    is_vp8 = stream.codec_context.codec.canonical_name == "vp8"
    for packet in _packets(container, stream, kind, limits):
        if _is_shown(packet, is_vp8) and packet.pts is not None:
            heapq.heappush(expected, packet.pts)
        try:
            decoded = packet.decode()
        except MemoryError:
            raise
        except (importlib.import_module("av").FFmpegError, *ERRORS) as error:
            problem = f"is {kind.name} that is damaged or cut short at frame {count}"
            raise InvalidRequest(problem) from error
        for frame in decoded:
            _check_size(frame.width, frame.height, limits)
            if _is_one_missing(expected, frame.pts) and count:
                raise InvalidRequest(f"is damaged: frame {count} can't be decoded")
            yield frame
            count += 1
    if len(expected) > 1 and count:
        raise InvalidRequest(
            f"is damaged: its last {len(expected)} frames, from frame {count} on, can't be decoded"
        )


def _is_one_missing(expected: list[int], seen: int | None) -> bool:
    """True if a frame was expected before this time. Those up to it are not expected any more."""
    is_missing = False
    while seen is not None and expected and expected[0] <= seen:
        is_missing |= heapq.heappop(expected) < seen
    return is_missing


def _packets(container: Any, stream: Any, kind: Kind, limits: FilmLimits) -> Iterator[Any]:
    """The coded frames as they lie in the file, and an empty one behind the last, within the limits
    of their number and of the time that they and whatever is done with them may take."""
    began, packets = time.process_time(), container.demux(stream)
    for count in range(MAX_STORED + 2):
        try:
            packet = next(packets, None)
        except MemoryError:
            raise
        except (importlib.import_module("av").FFmpegError, *ERRORS) as error:
            raise InvalidRequest(f"is {kind.name} that is damaged or cut short") from error
        if packet is None:
            return
        if time.process_time() - began > limits.decode_s:
            raise InvalidRequest(
                f"takes more than {limits.decode_s:g} s to decode: after that {count} frames of "
                f"{stream.width}x{stream.height} pixels were read; send it shorter or smaller"
            )
        yield packet
    raise InvalidRequest(f"has more than {MAX_STORED} frames, which are not counted")


def _is_shown(packet: Any, is_vp8: bool) -> bool:
    """False for a packet of which no frame is seen: an empty one, one that an edit list leaves out,
    and one of VP8's frames that others only refer to."""
    if not packet.size or packet.is_discard:
        return False
    return not is_vp8 or bool(bytes(packet)[0] & 0x10)


def _upright(frame: Any) -> tuple[tuple[int, int], bytes]:
    """Width and height, and the pixels as they are to be seen."""
    colours = frame.reformat(format="rgb24", threads=1)
    plane = colours.planes[0]
    size = (colours.width, colours.height)
    picture = Image.frombuffer("RGB", size, bytes(plane), "raw", "RGB", plane.line_size, 1)
    turn = turn_of(frame)
    if turn is not None:
        picture = picture.transpose(turn)
    return picture.size, picture.tobytes()
