"""Films that callers send: every kind that is read, and what is refused of which films, by name."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from predictors.errors import InvalidRequest, TooLarge
from predictors.protocol.films.decode import FilmFacts, decode_frames, probe_frames
from predictors.protocol.films.memory import frames_bytes, probing_bytes
from predictors.protocol.tasks import decode_film, probe_film
from predictors.settings import FilmLimits
from tests.chat.films import ENCODERS, Clip

LIMITS = FilmLimits()
WHERE = "messages[0].content[0].video_url"
CLIP = Clip(frames=12, rate=Fraction(8))


def read(raw: bytes, indices: list[int], limits: FilmLimits = LIMITS) -> list[np.ndarray[Any, Any]]:
    found = decode_frames(raw, indices, limits)
    shape = (found.count, found.height, found.width, 3)
    return list(np.frombuffer(found.memory.read(), np.uint8).reshape(shape))


@pytest.mark.parametrize("kind", ENCODERS)
def test_films_of_every_kind_are_read(kind: str) -> None:
    clip = Clip(kind, width=64, height=64)
    raw = clip.file()
    assert probe_frames(raw, LIMITS) == FilmFacts(12, 8.0, 64, 64)
    drawn = clip.pictures()
    for i, frame in zip((0, 5, 11), read(raw, [0, 5, 11]), strict=True):
        others = [np.abs(frame.astype(int) - picture).mean() for picture in drawn]
        assert int(np.argmin(others)) == i


@pytest.mark.parametrize(("kind", "sound"), [("h264", "aac"), ("mov", "aac"), ("vp8", "libopus")])
def test_a_film_with_sound_is_read_as_one_without(kind: str, sound: str) -> None:
    encoder, container = ENCODERS[kind]
    raw = io.BytesIO()
    with av.open(raw, "w", format=container) as out:
        silence: Any = out.add_stream(sound, rate=48_000, layout="mono")
        stream: Any = out.add_stream(encoder, rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(71):  # 1.5 s
            samples = np.zeros((1, 1024), np.float32)
            heard = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            heard.sample_rate, heard.pts = 48_000, 1024 * i
            out.mux(silence.encode(heard))
        for picture in CLIP.pictures():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(silence.encode(None))
        out.mux(stream.encode(None))
    assert probe_frames(raw.getvalue(), LIMITS) == FilmFacts(12, 8.0, 48, 32)
    assert len(read(raw.getvalue(), [0, 5, 11])) == 3


def test_a_film_that_was_filmed_upright_is_turned() -> None:
    raw = io.BytesIO()
    with av.open(raw, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.set_display_rotation(-90)
        for picture in CLIP.pictures():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    facts = probe_frames(raw.getvalue(), LIMITS)
    assert (facts.width, facts.height) == (32, 48)
    (plain,), (turned,) = read(CLIP.file(), [3]), read(raw.getvalue(), [3])
    # two runs of the encoder may differ
    near = [np.abs(turned.astype(int) - np.rot90(plain, k)).mean() for k in (-1, 1)]
    assert min(near) < 3 < max(near)


def test_frames_at_uneven_times_count_by_their_average() -> None:
    times = [0, 10, 30, 500, 510, 900, 1500, 1510, 1600, 1700, 2100, 2200]
    for kind in ("h264", "vp8"):
        facts = probe_frames(Clip(kind).file(times), LIMITS)
        assert facts.frames == 12
        assert facts.fps == pytest.approx(11 / 2.2, rel=0.11)


def test_times_before_zero_are_read() -> None:
    times = [125 * i - 500 for i in range(12)]
    raw = CLIP.file(times, avoid_negative_ts="disabled")
    facts = probe_frames(raw, LIMITS)
    assert facts.frames == 8  # players leave out what lies before the beginning, too
    assert len(read(raw, list(range(facts.frames)))) == facts.frames


def test_a_rate_that_the_frames_contradict_does_not_count() -> None:
    raw = Clip("vp8").file()
    wrong = raw.replace((125_000_000).to_bytes(4, "big"), (1_000_000).to_bytes(4, "big"))
    assert wrong != raw
    assert probe_frames(wrong, LIMITS).fps == pytest.approx(8.0)


def test_a_size_that_only_the_container_tells_does_not_count() -> None:
    assert probe_frames(told_size(65535, 65535), LIMITS) == FilmFacts(12, 8.0, 48, 32)


def test_a_film_that_refers_to_another_file_is_read_without_it(tmp_path: Any) -> None:
    raw = CLIP.file()
    (tmp_path / "other.mp4").write_bytes(Clip(frames=40).file())
    changed = raw.replace(b"url \0\0\0\1", b"url \0\0\0\0")
    assert changed != raw
    assert probe_frames(changed, LIMITS).frames == 12


def damaged(raw: bytes) -> bytes:
    """With its coded pictures overwritten."""
    at = raw.index(b"mdat") + 700
    return raw[:at] + b"\xff" * (raw.index(b"moov") - at - 8) + raw[raw.index(b"moov") - 8 :]


def live(raw: bytes) -> bytes:
    """A WebM film whose length is not told, as one that is recorded while it is sent."""
    at = raw.index(b"\x18\x53\x80\x67") + 4
    assert raw[at] == 1  # eight bytes
    return raw[:at] + b"\x01" + b"\xff" * 7 + raw[at + 8 :]


def without_frame(clip: Clip, number: int, start: int, count: int) -> bytes:
    """An MP4 film, of whose frame with this number `count` bytes are zeros: FFmpeg leaves it out
    without an error, and in HEVC all that depend on it."""
    with av.open(io.BytesIO(raw := clip.file())) as container:
        packets = [p for p in container.demux(container.streams.video[0]) if p.size]
        at = (packets[number].pos or 0) + start
    return raw[:at] + bytes(count) + raw[at + count :]


def turned(a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 film whose frames are to be shown by this matrix, row by row."""
    raw = CLIP.file()
    at = raw.index(b"tkhd") + 4 + 40
    numbers = [each << 16 for each in (a, b, 0, c, d, 0, 0, 0)]
    return raw[:at] + struct.pack(">8i", *numbers) + raw[at + 32 :]


def sound() -> bytes:
    raw = io.BytesIO()
    with av.open(raw, "w", format="matroska") as out:
        stream = out.add_stream("flac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), "s16", "mono")
        frame.rate, frame.pts = 8000, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return raw.getvalue()


def other_codec() -> bytes:
    raw = io.BytesIO()
    with av.open(raw, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 48, 32
        for picture in CLIP.pictures():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return raw.getvalue()


def lying_size(width: int, height: int) -> bytes:
    """A VP8 film whose container tells its real size and whose key frame another one."""
    raw = Clip("vp8").file()
    at = raw.index(b"\x9d\x01\x2a") + 3
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return raw[:at] + size + raw[at + 4 :]


def told_size(width: int, height: int) -> bytes:
    """An H.264 film whose container tells a size that no frame has."""
    raw = CLIP.file()
    at = raw.index(b"avc1", raw.index(b"stsd")) + 28
    size = width.to_bytes(2, "big") + height.to_bytes(2, "big")
    return raw[:at] + size + raw[at + 4 :]


FRAGMENTED = {"movflags": "+frag_keyframe+empty_moov"}
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "is empty"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(40), "is a PNG picture; taken are films"),
    "a GIF": (lambda: b"GIF89a" + bytes(40), "is a GIF picture; taken are films in MP4"),
    "a page": (lambda: b"<html><video src=x></video>", "is an HTML page"),
    "a playlist": (lambda: b"#EXTM3U\n#EXTINF:1\nhttp://127.0.0.1/a.ts\n", "is text; taken"),
    "an AVI": (lambda: b"RIFF\0\0\0\0AVI LIST" + bytes(40), "is an AVI video; taken"),
    "only a type": (lambda: b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "header is damaged, cut short"),
    "only a head": (lambda: b"\x1a\x45\xdf\xa3" + bytes(400), "header is damaged, cut short"),
    "zeros behind a type": (lambda: CLIP.file()[:40] + bytes(5000), "header is damaged"),
    "cut before its header": (lambda: CLIP.file()[:1500], r"cut short: it has 1500 bytes, and its"),
    "cut behind its header": (
        lambda: Clip(frames=60).file(**FRAGMENTED)[:4000],
        r"is cut short: it has 4000 bytes, and its header tells of \d+ more",
    ),
    "a WebM cut in half": (
        lambda: live(Clip("vp8", frames=80, width=96).file())[:2600],
        "is cut short: its header tells 10.0 s",
    ),
    "a frame that can't be decoded": (
        lambda: without_frame(Clip(frames=40), 20, 6, 1),
        r"is damaged: frame \d+ can't be decoded",
    ),
    "last frames that can't be decoded": (
        lambda: without_frame(Clip("hevc", 40, 64, 64), 30, 4, 20),
        r"is damaged: its last \d+ frames, from frame \d+ on, can't be decoded",
    ),
    "turned by 45 degrees": (lambda: turned(1, 1, -1, 1), "is to be turned by other than 0, 90"),
    "overwritten": (lambda: damaged(Clip(frames=60).file()), "is damaged"),
    "sound alone": (sound, r"without a video track \(1 of other kinds\)"),
    "another codec": (other_codec, "of mpeg4; read are H.264, HEVC"),
    "one frame": (lambda: Clip(frames=1).file(), "of one frame; send that as a picture"),
    "no frames": (
        lambda: CLIP.file(**FRAGMENTED).partition(b"moof")[0][:-4],
        "is an MP4 video (without frames|whose header|that is)",
    ),
    "frames at one time": (
        lambda: Clip("vp8", frames=3).file([5, 5, 5]),
        "have the same time|is cut short",
    ),
    "larger frames than its header tells": (lambda: lying_size(16383, 16383), "is damaged"),
}


def read_in_worker(raw: bytes) -> None:
    """As a worker's two tasks read all frames."""
    facts = probe_film(raw, LIMITS, WHERE, None)
    decode_film(raw, facts, range(facts.frames), LIMITS, WHERE, None)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_film_that_is_not_read_is_refused_by_name(name: str) -> None:
    make, expected = HOSTILE[name]
    raw = make()
    with pytest.raises(InvalidRequest, match=expected) as refused:
        read_in_worker(raw)
    assert refused.value.param == WHERE
    assert refused.value.message.startswith(f"{WHERE} ")
    assert "0x" not in refused.value.message
    assert "avcodec" not in refused.value.message


BOUNDS: list[tuple[FilmLimits, str]] = [
    (FilmLimits(max_duration_s=1.0), r"lasts 1\.5 s; at most 1 are taken"),
    (FilmLimits(max_frame_pixels=1000), "has frames of 48x32 pixels, 1536; at most 1000"),
]


@pytest.mark.parametrize(("limits", "expected"), BOUNDS, ids=["duration", "pixels"])
def test_a_film_beyond_a_limit_is_refused_with_the_numbers(
    limits: FilmLimits, expected: str
) -> None:
    with pytest.raises(InvalidRequest, match=expected):
        probe_frames(CLIP.file(), limits)


def test_a_film_of_too_many_bytes_is_too_large() -> None:
    with pytest.raises(TooLarge, match="at most 100 are taken"):
        probe_frames(CLIP.file(), FilmLimits(max_bytes=100))


def test_a_film_that_takes_long_to_decode_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, now = CLIP.file(), iter(range(0, 1000, 7))
    clock = "predictors.protocol.films.decode.time.process_time"
    monkeypatch.setattr(clock, lambda: float(next(now)))
    with pytest.raises(InvalidRequest, match=r"more than 20 s .* 2 frames of 48x32 pixels"):
        decode_frames(raw, [11], LIMITS)


def test_counting_the_frames_of_a_film_has_a_limit_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matroska's packets may be packed, each in 10 MB."""
    raw, now = CLIP.file(), iter(range(0, 1000, 7))
    clock = "predictors.protocol.films.decode.time.process_time"
    monkeypatch.setattr(clock, lambda: float(next(now)))
    with pytest.raises(InvalidRequest, match=r"more than 20 s to decode: after that 2 frames"):
        probe_frames(raw, LIMITS)


def test_frames_that_are_not_shown_count_among_those_that_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four million of them fit into a file of VP8."""
    raw = Clip("vp8").file()
    with av.open(io.BytesIO(raw)) as container:
        coded = [bytes(packet) for packet in container.demux(container.streams.video[0])]
    for each in filter(None, coded[2:]):
        raw = raw.replace(each, bytes([each[0] & ~0x10]) + each[1:])
    monkeypatch.setattr("predictors.protocol.films.decode.MAX_STORED", 8)
    with pytest.raises(InvalidRequest, match="has more than 8 frames"):
        probe_frames(raw, LIMITS)


def test_a_film_that_is_turned_midway_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """H.264 tells the turn of each frame, if it tells any."""
    turns = iter([None, None, Image.Transpose.ROTATE_90])
    monkeypatch.setattr("predictors.protocol.films.decode.turn_of", lambda frame: next(turns))
    with pytest.raises(InvalidRequest, match="is turned in another way from frame 2 on"):
        decode_frames(CLIP.file(), [0, 1, 2], LIMITS)


def test_a_film_with_fewer_frames_than_asked_for_says_how_many_it_has() -> None:
    found = decode_frames(CLIP.file(), [3, 20], LIMITS)
    assert (found.count, found.decoded) == (0, 12)


def test_a_server_without_the_decoder_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("predictors.protocol.films.decode.importlib.import_module", missing)
    with pytest.raises(InvalidRequest, match=r"no decoder of films .*vision-predictors\[films\]"):
        probe_frames(CLIP.file(), LIMITS)


def test_the_memory_of_a_film_grows_with_its_frames() -> None:
    facts = FilmFacts(100, 8.0, 640, 480)
    one, ten = (frames_bytes(facts, count, 1000) for count in (1, 10))
    assert ten - one == 9 * 640 * 480 * 3
    assert probing_bytes(1000, 10**6) < probing_bytes(1000, 2 * 10**6)
