"""Films of requests: which frames are read and how large, what is refused, and names of pages."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from predictors.chat.film import Film, FilmOptions, FilmSize
from predictors.chat.inputs import ChatPreparer
from predictors.chat.kv_cache import page_names
from predictors.chat.request import (
    Picture,
)
from predictors.chat.vision.films import FrameChoice
from predictors.errors import InvalidRequest, PromptTooLong
from predictors.models.qwen2_5_vl.model import Qwen25VLModel
from predictors.protocol.films.decode import FilmFacts, FilmFrames
from predictors.settings import FilmLimits, ImageLimits, QwenVLSettings
from predictors.workers.messages import SharedMemory
from tests.chat.films import Clip, film, film_chat
from tests.chat.reference import Reference
from tests.chat.room import CHECKPOINT, Room, png


def preparer(context: int = 512, *, on_device: bool = False, **limits: Any) -> ChatPreparer:
    """Of the embedded checkpoint, with these limits of films."""
    model, settings = Qwen25VLModel(CHECKPOINT), QwenVLSettings(films="on")
    given = (ImageLimits(), lambda: context, on_device, FilmLimits(**limits))
    return ChatPreparer("test", model, settings, *given)


@pytest.fixture(scope="module")
def inputs() -> ChatPreparer:
    return preparer()


CLIP = Clip()  # 12 frames at 8 per second
SIX = tuple(png(i, 60, 60) for i in range(6))


def size_of(inputs: ChatPreparer, sent: Film) -> FilmSize:
    (size,) = inputs.prepare(film_chat(sent, "what?")).films
    return size


@pytest.mark.parametrize(
    ("options", "frames", "fps"),
    [
        ({}, 4, 2.667),  # at least four
        ({"fps": 4}, 6, 4.0),
        ({"fps": 100}, 12, 8.0),
        ({"num_frames": 6}, 6, 4.0),
        ({"num_frames": -1}, 12, 8.0),
        ({"fps": 4, "max_frames": 4}, 4, 2.667),
        ({"fps": 1, "min_frames": 8}, 8, 5.333),
        ({"max_frames": 2}, 2, 1.333),
        ({"fps": 0.5, "min_frames": 7}, 8, 5.333),  # whole steps
        ({"min_frames": 200}, 12, 8.0),  # as many as there are
        ({"num_frames": 12, "max_frames": 12}, 12, 8.0),
    ],
)
def test_frames_are_picked_as_asked(
    inputs: ChatPreparer, options: dict[str, Any], frames: int, fps: float
) -> None:
    size = size_of(inputs, film(CLIP, **options))
    assert (size.frames, size.fps) == (frames, fps)


@pytest.mark.parametrize("frames", [2, 3, 5])
@pytest.mark.parametrize("asked", [-1, 0])
def test_all_frames_of_a_short_film_are_read(inputs: ChatPreparer, frames: int, asked: int) -> None:
    """transformers refuses three frames of three, and reads four of five."""
    size = size_of(inputs, film(Clip(frames=frames), num_frames=asked or frames))
    assert size.frames == (frames if asked else frames // 2 * 2)


def test_no_frame_is_picked_behind_the_end_of_a_film(inputs: ChatPreparer) -> None:
    """transformers picks frame 17 of 17 for 14 frames, counted from 0, by rounding."""
    assert inputs.films is not None
    preparation = inputs.films._films
    for frames in range(2, 200):
        facts = FilmFacts(frames, 8.0, 48, 32)
        for count in range(2, frames + 1, 2):
            picked = preparation.indices(facts, FrameChoice(None, count, None, 256))
            assert len(picked) == count
            assert picked[-1] < frames
    assert size_of(inputs, film(Clip(frames=17), num_frames=14)).frames == 14


def test_the_servers_limits_bound_what_a_film_asks_for() -> None:
    assert size_of(preparer(max_frames=6), film(CLIP, fps=8)).frames == 6
    few = preparer(max_pixels=5 * 48 * 32)  # room for five frames, of which steps take four
    assert size_of(few, film(CLIP, fps=8)).frames == 4
    large = film(Clip(width=280, height=280))
    assert size_of(preparer(), large).tokens == 200  # of 512 / 2
    assert size_of(preparer(max_tokens=60), large).tokens <= 60
    assert size_of(preparer(), replace(large, options=FilmOptions(total_pixels=20_000))).tokens < 26
    assert size_of(preparer(), replace(large, options=FilmOptions(max_pixels=3136))).tokens == 8


def of_pictures(**options: Any) -> Film:
    return Film(SIX, is_frames=True, options=FilmOptions(**options))


REFUSED: list[tuple[Film, str]] = [
    (film(CLIP, num_frames=20), "video: has 12 frames; num_frames 20 is more"),
    (film(CLIP, num_frames=400), "num_frames 400 is above the 256 that this server reads"),
    (film(CLIP, min_frames=400), "min_frames 400 is above the 256 that this server reads"),
    (film(Clip(width=410, height=2)), "frames of 410x2 pixels can't be cut into patches"),
    (Film((SIX[0], png(1, 61, 60)), is_frames=True), "frame 1 is 61x60 .* are 60x60"),
    (Film((SIX[0], b"nothing"), is_frames=True), r"video\[1\] is text; taken are pictures"),
    (Film((SIX[0],) * 300, is_frames=True), "is a film of 300 frames; at most 256"),
    (film(CLIP, num_frames=10, max_frames=4), "num_frames 10 is above max_frames 4"),
    (of_pictures(num_frames=2), "film of 6 pictures, all of which are read, and num_frames 2 asks"),
    (of_pictures(max_frames=4), "film of 6 pictures, all of which are read, and max_frames 4 asks"),
]


@pytest.mark.parametrize(("sent", "expected"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_a_film_that_can_not_be_read_as_asked_is_refused(
    inputs: ChatPreparer, sent: Film, expected: str
) -> None:
    with pytest.raises(InvalidRequest, match=expected):
        inputs.prepare(film_chat(sent, "what?"))


def test_a_film_that_does_not_fit_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("predictors.chat.film_inputs.decode_frames", None)
    small = preparer(context=64, max_tokens=200)
    with pytest.raises(PromptTooLong, match=r" 64 tokens.* frames read as .*\(lower fps, max_fr"):
        small.prepare(film_chat(film(Clip(width=280, height=280), fps=8), "what?"))


def test_pictures_that_are_all_asked_for_are_a_film(inputs: ChatPreparer) -> None:
    for options in ({"num_frames": 6}, {"num_frames": -1}, {"max_frames": 6}, {"min_frames": 8}):
        assert size_of(inputs, of_pictures(**options)).frames == 6


def test_too_many_pictures_are_refused_before_one_is_decoded(
    inputs: ChatPreparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("predictors.chat.film_inputs.decode_pixels", None)
    with pytest.raises(InvalidRequest, match="is a film of 300 frames; at most 256"):
        inputs.prepare(film_chat(Film(SIX * 50, is_frames=True), "what?"))


def test_pictures_as_frames_are_a_film(inputs: ChatPreparer) -> None:
    sent = Film(SIX, is_frames=True, options=FilmOptions(fps=1.0))
    work = inputs.prepare(film_chat(sent, "what?"))
    assert work.films == (FilmSize(56, 56, 6, 1.0, 12),)
    first = work.pictures[0].start
    time = work.positions[0, first : first + 12].unflatten(0, (3, 4))
    # two seconds, of two positions each, from step to step
    assert torch.equal(time[:, 0] - time[0, 0], torch.tensor([0, 4, 8]))
    odd = inputs.prepare(film_chat(replace(sent, files=SIX[:5]), "what?"))
    assert (odd.films[0].frames, odd.films[0].tokens) == (5, 12)
    last = odd.pictures[2].prepared.values.unflatten(1, (2, -1))
    assert torch.equal(last[:, 0], last[:, 1])  # the last frame fills its step


def test_films_that_differ_in_time_alone_share_no_pages(inputs: ChatPreparer) -> None:
    works = [
        inputs.prepare(film_chat(Film(SIX, True, FilmOptions(fps=fps)), "what is it?"))
        for fps in (1.0, 0.5)
    ]
    assert torch.equal(works[0].tokens, works[1].tokens)
    keys = [[work.picture_key(p) for p in work.pictures] for work in works]
    assert keys[0] == keys[1]  # features are the same
    slow, fast = (page_names(work, 4) for work in works)
    second = works[0].pictures[1].start // 4
    assert slow[:second] == fast[:second]
    assert not set(slow[second:]) & set(fast[second:])


def test_a_repeated_film_is_decoded_once(
    inputs: ChatPreparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = film(Clip(frames=10, rate=Fraction(5)))
    first = inputs.prepare(film_chat(sent, "what?"))
    monkeypatch.setattr("predictors.chat.film_inputs.probe_frames", None)
    again = inputs.prepare(film_chat(sent, "why?"))
    assert again.pictures[0].prepared is first.pictures[0].prepared
    with pytest.raises(TypeError):
        inputs.prepare(film_chat(replace(sent, options=FilmOptions(fps=1.0)), "why?"))


def test_for_a_device_frames_are_resized_and_not_cut() -> None:
    usual, sent = preparer(), film(Clip(width=100, height=64))
    decoded = preparer(on_device=True).prepare(film_chat(sent, "what?"))
    made = usual.prepare(film_chat(sent, "what?"))
    assert decoded.tokens.tolist() == made.tokens.tolist()
    step = decoded.pictures[0].prepared
    rows, columns = step.grid
    assert step.values.shape == (2, 14 * rows, 14 * columns, 3)
    assert step.values.dtype is torch.uint8
    assert step.format is not None


def test_a_film_whose_file_has_fewer_frames_is_planned_again(inputs: ChatPreparer) -> None:
    films, sent = inputs.films, film(CLIP)
    assert films is not None
    facts = FilmFacts(100, 8.0, 48, 32)

    def found(decoded: int) -> FilmFrames:
        return FilmFrames(0, 0, 0, SharedMemory.empty(), decoded)

    assert films.shorter(sent, facts, found(90)).frames == 90
    with pytest.raises(InvalidRequest, match="damaged: 40 of 100 frames can be decoded"):
        films.shorter(sent, facts, found(40))


def test_films_are_refused_by_name_where_they_are_off() -> None:
    model = Qwen25VLModel(CHECKPOINT)
    off = ChatPreparer("test", model, QwenVLSettings(films="off"), ImageLimits(), lambda: 512)
    with pytest.raises(InvalidRequest, match=r"films are not taken: .* \(setting qwen_vl.films"):
        off.prepare(film_chat(film(CLIP), "what?"))


def test_films_are_refused_where_pyav_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("predictors.chat.limits.find_spec", lambda name: None)
    model = Qwen25VLModel(CHECKPOINT)
    bare = ChatPreparer("test", model, QwenVLSettings(), ImageLimits(), lambda: 512)
    assert "vision-predictors[films]" in bare.no_films
    assert bare.films is None


def test_films_are_refused_where_the_template_has_no_place_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = preparer()
    made.check_films()
    assert made.films is not None
    template = str(made._model.template).replace("<|video_pad|>", "")
    monkeypatch.setattr(made._model, "template", template)
    made.check_films()
    with pytest.raises(InvalidRequest, match="the chat template has no place for films"):
        made.prepare(film_chat(film(CLIP), "what?"))


def test_a_folder_whose_film_processor_is_another_is_served_without_films(tmp_path: Path) -> None:
    for file in CHECKPOINT.iterdir():
        (tmp_path / file.name).symlink_to(file)
    own = tmp_path / "video_preprocessor_config.json"
    own.write_text('{"video_processor_type": "LlavaOnevisionVideoProcessor"}')
    model = Qwen25VLModel(tmp_path)
    assert model.films is None
    assert "video_processor_type is 'LlavaOnevision" in model.no_films


@pytest.mark.parametrize("fps", [0.003, 1e-18, 5e-324])
def test_pictures_that_last_longer_than_a_film_may_are_refused(
    inputs: ChatPreparer, fps: float
) -> None:
    slow = Film(SIX, is_frames=True, options=FilmOptions(fps=fps))
    with pytest.raises(InvalidRequest, match=r"lasts .* s; at most 1800 are taken") as refused:
        inputs.prepare(film_chat(slow, "what?"))
    assert refused.value.param == "video"
    inputs.prepare(film_chat(Film(SIX, is_frames=True, options=FilmOptions(fps=0.004)), "what?"))


def test_films_are_refused_beside_an_adapter_of_the_patches(inputs: ChatPreparer) -> None:
    adapter = SimpleNamespace(name="eyes", changes={"visual.patch_embed.proj": None})
    mix: Any = SimpleNamespace(scales=((adapter, 1.0),))
    asked = replace(film_chat(film(CLIP), "what?"), adapters=mix)
    with pytest.raises(InvalidRequest, match="films are not taken with the adapter 'eyes'"):
        inputs.prepare(asked)


def test_answers_depend_on_every_frame_and_are_those_of_generate(
    wild: Room, wild_checkpoint: Path
) -> None:
    requests = [
        film_chat(film(clip), *rest)
        for clip, rest in (
            (CLIP, ("what?",)),
            (Clip(frames=13, width=90, rate=Fraction(3)), ("what?",)),
            (Clip("vp9", frames=6, rate=Fraction(2)), (Picture(png(3)), "and?")),
            (Clip(frames=6, height=48), (film(Clip("vp8", frames=8)), "which?")),
            (Clip(frames=20, width=60, height=90, rate=Fraction(12)), ("which of them moves?",)),
            (Clip(frames=9, width=32, height=90, rate=Fraction(3)), ("what?",)),
        )
    ]
    ours = wild.answers(requests)
    assert len({tuple(answer) for answer in ours}) > 3
    reference = Reference.load(wild_checkpoint)
    assert ours == [reference.answer(request) for request in requests]
