"""Processors and chat templates of Qwen-VL folders, as transformers has written them."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from pathlib import Path

import pytest
from transformers import AutoProcessor

from predictors.chat.pixel_bounds import PixelBounds
from predictors.chat.template_files import read_template
from predictors.errors import EngineFailed
from predictors.models.qwen2_5_vl.model import Qwen25VLModel
from tests.chat.room import Room, chat, png
from tests.variants import QWEN, Change, config, said_by_check, variant, without, write

# -- processors ------------------------------------------------------------------------------------
PREPROCESSOR = "preprocessor_config.json"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture(scope="module")
def answer() -> list[int]:
    return Room.open(slots=1).answer(chat("Describe this picture.", png(1)))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "name",
    [
        "Qwen2_5_VLImageProcessor", "Qwen2_5_VLImageProcessorFast", "Qwen2VLImageProcessorFast",
        "Qwen2VLImageProcessorPil", None,
    ],
)  # fmt: skip
def test_every_name_of_the_processor_prepares_alike(
    tmp_path: Path, name: str | None, answer: list[int]
) -> None:
    folder = variant(
        QWEN, tmp_path / "c", config(PREPROCESSOR, image_processor_type=name, processor_class=...)
    )
    assert Room.open(folder, slots=1).answer(chat("Describe this picture.", png(1))) == answer


@pytest.mark.usefixtures("no_network")
def test_a_folder_without_any_preprocessor_file_has_the_releases_settings(
    tmp_path: Path, answer: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    folder = variant(QWEN, tmp_path / "c", without(PREPROCESSOR))
    with caplog.at_level(logging.INFO):
        room = Room.open(folder, slots=1)
    assert "c has no preprocessor_config.json: pictures are prepared as" in caplog.text
    assert room.answer(chat("Describe this picture.", png(1))) == answer
    bounds = room.model.pictures.bounds
    assert bounds == Qwen25VLModel(QWEN).pictures.bounds == PixelBounds(3136, 12_845_056)


def test_what_a_preprocessor_file_leaves_out_is_the_releases(
    tmp_path: Path, answer: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Above all patch size and mean, which differ between releases that share a class."""
    bare = config(PREPROCESSOR, patch_size=..., image_mean=..., image_std=..., merge_size=...)
    folder = variant(QWEN, tmp_path / "c", bare)
    with caplog.at_level(logging.INFO):
        room = Room.open(folder, slots=1)
    assert "preprocessor_config.json of c lacks settings of pictures: {'image_mean'" in caplog.text
    assert room.answer(chat("Describe this picture.", png(1))) == answer


def test_patches_of_another_size_than_the_towers_default_are_refused(tmp_path: Path) -> None:
    """Where neither file names the tower's size, so that nothing disagrees in them."""
    vision = json.loads((QWEN / "config.json").read_text())["vision_config"]
    del vision["patch_size"]
    changes = (config("config.json", vision_config=vision), config(PREPROCESSOR, patch_size=16))
    folder = variant(QWEN, tmp_path / "c", *changes)
    with pytest.raises(EngineFailed, match="patch_size is 16, but that of the vision tower 14"):
        Qwen25VLModel(folder)


def test_the_settings_of_one_checkpoint_are_not_the_defaults_of_the_next(tmp_path: Path) -> None:
    small = variant(QWEN, tmp_path / "a", config(PREPROCESSOR, min_pixels=784, max_pixels=7840))
    bare = variant(QWEN, tmp_path / "b", config(PREPROCESSOR, min_pixels=..., max_pixels=...))
    assert Qwen25VLModel(small).pictures.bounds == PixelBounds(784, 7840)
    assert Qwen25VLModel(bare).pictures.bounds == PixelBounds(56 * 56, 28 * 28 * 1280)


def test_a_processor_config_holds_the_same(tmp_path: Path, answer: list[int]) -> None:
    """As transformers 5 saves it: one file for all."""
    folder = variant(QWEN, tmp_path / "c", without(PREPROCESSOR))
    AutoProcessor.from_pretrained(QWEN).save_pretrained(tmp_path / "saved")
    for file in ("processor_config.json", "chat_template.jinja"):
        shutil.copy(tmp_path / "saved" / file, folder / file)
    assert Room.open(folder, slots=1).answer(chat("Describe this picture.", png(1))) == answer


# -- chat templates --------------------------------------------------------------------------------
TOKENIZER = "tokenizer_config.json"
FREE = (config(TOKENIZER, chat_template=...), without("chat_template.json"))
RAW, NAMED = "chat_template.jinja", "additional_chat_templates"


def legacy(text: str) -> Change:
    return write("chat_template.json", json.dumps({"chat_template": text}))


def named(**texts: str) -> Change:
    listed = [{"name": name, "template": text} for name, text in texts.items()]
    return config(TOKENIZER, chat_template=listed)


PLACES: dict[str, tuple[tuple[Change, ...], str | None]] = {
    "raw": ((write(RAW, "raw"),), "raw"),
    "legacy": ((legacy("old"),), "old"),
    "the tokenizer's": ((config(TOKENIZER, chat_template="t"),), "t"),
    "a list": ((named(default="d", tool_use="x"),), "d"),
    "raw before the tokenizer's": ((write(RAW, "r"), config(TOKENIZER, chat_template="t")), "r"),
    "legacy before raw": ((legacy("old"), write(RAW, "raw")), "old"),
    "the processor's first": (
        (write("processor_config.json", '{"chat_template": "p"}'), legacy("old"), write(RAW, "r")),
        "p",
    ),
    "further ones beside raw": ((write(RAW, "raw"), write(f"{NAMED}/tools.jinja", "x")), "raw"),
    "a default among further ones": ((write(f"{NAMED}/default.jinja", "d"),), "d"),
    "empty": ((write(RAW, ""),), ""),
    "none": ((), None),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # transformers leaves its files open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("changes", "text"), PLACES.values(), ids=PLACES)
def test_the_template_is_found_in_every_place_in_transformers_order(
    tmp_path: Path, changes: tuple[Change, ...], text: str | None
) -> None:
    folder = variant(QWEN, tmp_path / "c", *FREE, *changes)
    assert read_template(folder) == text
    processor = AutoProcessor.from_pretrained(folder)
    theirs = processor.chat_template or processor.tokenizer.chat_template
    if isinstance(theirs, dict):
        theirs = theirs["default"]
    assert (theirs or None) == (text or None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((named(tool_use="x", rag="y"),), "templates 'tool_use, rag', but none called 'default'"),
        ((write(f"{NAMED}/tools.jinja", "x"),), "none called 'default'"),
        ((legacy("old"), write(f"{NAMED}/tools.jinja", "x")), "does not read together"),
        ((config(TOKENIZER, chat_template=5),), "chat_template is 5, not a text"),
        ((write(RAW, b"\xff\xfe\x00"),), "chat_template.jinja"),
    ],
)
def test_templates_of_which_none_is_clearly_meant_are_refused(
    tmp_path: Path, changes: tuple[Change, ...], said: str
) -> None:
    with pytest.raises(EngineFailed) as failure:
        read_template(variant(QWEN, tmp_path / "c", *FREE, *changes))
    assert said in failure.value.message


def test_a_conversation_is_rendered_alike_from_every_place(
    tmp_path: Path, answer: list[int]
) -> None:
    text = json.loads((QWEN / TOKENIZER).read_text())["chat_template"]
    for at, change in enumerate(
        (write(RAW, text), legacy(text), named(default=text), config(TOKENIZER, chat_template=text))
    ):
        folder = variant(QWEN, tmp_path / str(at), *FREE, change)
        model = Qwen25VLModel(folder)
        assert model.render([{"role": "user", "content": "hi"}]) == Qwen25VLModel(QWEN).render(
            [{"role": "user", "content": "hi"}]
        )
    assert Room.open(folder, slots=1).answer(chat("Describe this picture.", png(1))) == answer


COSTLY = {
    "nested loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'x' * 1000000 }}",
    "a repeated text": "{{ 'x' * 3000000000 }}",
    "a repeated list": "{{ ([1] * 3000000000)|length }}",
    "a large power": "{{ 10 ** 10000000000 }}",
    "many long texts": "{% for i in range(99999) %}{{ 'x' * 9 }}{% endfor %}",
}


@pytest.mark.parametrize("costly", COSTLY.values(), ids=COSTLY)
def test_a_template_that_would_run_for_ever_or_fill_the_memory_is_refused(
    tmp_path: Path, costly: str
) -> None:
    text = costly + json.loads((QWEN / TOKENIZER).read_text())["chat_template"]
    folder = variant(QWEN, tmp_path / "c", *FREE, config(TOKENIZER, chat_template=text))
    assert "needs too much time, memory or text for a turn of text" in said_by_check(folder)
