"""`draw` and `ask` against our own routes and a server of others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from predictors.__main__ import main
from predictors.cli.outcomes import FAILED, INTERRUPTED, REFUSED
from predictors.settings import AccessSettings
from tests.cli.foreign import foreign_server
from tests.http.echo import Running, png, serving, small_settings
from tests.http.openai_echo import Artist, Writer, words


@pytest.fixture(scope="module")
def live() -> Iterator[Running]:
    settings = small_settings()
    assert isinstance(settings.access, AccessSettings)
    models = [Artist("flux", words(), settings), Writer("chat", words(), settings)]
    with serving(*models, settings=settings) as running:
        yield running


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(png())
    return path


def test_a_picture_is_drawn_into_the_file(
    live: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "a.png"
    flags = ["--url", live.url, "--steps", "3", "--seed", "1", "--name", "flux"]
    assert main(["draw", "a red circle", "-o", str(out), *flags]) == 0
    assert out.read_bytes() == png()
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{out}: ")
    assert printed.err == ""  # no bar where stderr is no terminal


def test_the_report_of_a_picture_is_json(
    live: Running,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREDICTORS_URL", f"{live.url}/v1")
    out = tmp_path / "a.png"
    assert main(["draw", "a", "-o", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["file"] == str(out)
    assert report["seconds"] > 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-o", "a.gif"], "-o takes a file that ends with .png"),
        (["-o", "a.png", "--size", "64"], "--size takes WIDTHxHEIGHT, not '64'"),
        (["-o", "a.png", "--parameter", "x"], "--parameter takes NAME=VALUE"),
        (["-o", "a.png", "--url", "ftp://x"], "is no address such as"),
        (["-o", "a.png", "--key", "a b"], "an API key has only printable"),
    ],
)
def test_wrong_flags_of_draw_are_refused_in_a_sentence(
    live: Running, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["draw", "x", "--url", live.url, *flags]) == REFUSED
    assert said in capsys.readouterr().err


def test_a_refused_picture_leaves_no_file(
    live: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    flags = ["--url", live.url, "--parameter", "no_such_field=1"]
    assert main(["draw", "x", "-o", str(out), *flags]) == FAILED
    assert "no_such_field" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_words_of_a_foreign_server_are_printed(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with foreign_server() as url:
        assert main(["ask", str(picture), "what?", "--url", url]) == 0
        assert capsys.readouterr().out == "A foreign cat.\n"
        assert main(["ask", str(picture), "what?", "--url", url, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["answer"] == "A foreign cat."
        assert report["finish_reason"] == "stop"
        assert main(["ask", str(picture), "what?", "--url", url, "--name", "gpt"]) == FAILED
        assert "404: The model `gpt` does not exist." in capsys.readouterr().err
        assert main(["draw", "x", "-o", str(picture), "--url", url]) == FAILED
        assert "404: Not Found" in capsys.readouterr().err
    assert picture.read_bytes() == png()  # not touched


def test_a_picture_that_is_none_is_refused_before_the_server_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"a cat")
    for name, said in (
        ("none", "can't be read"),
        ("empty", "is empty"),
        (".", "can't be read"),
        ("notes.txt", "is no picture, by its name (text/plain)"),
    ):
        assert main(["ask", str(tmp_path / name), "what?", "--url", "http://[::1]:1"]) == REFUSED
        assert said in capsys.readouterr().err


def test_ctrl_c_ends_a_verb_with_130_and_no_traceback(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("predictors.cli.asking.data_url", interrupt)
    with foreign_server() as url:
        assert main(["ask", str(picture), "what?", "--url", url]) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
