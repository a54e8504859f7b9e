"""Addresses, keys, and the one sentence for whatever a server does wrong."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.__main__ import main
from predictors.cli.child import held_ports
from predictors.cli.endpoint import base_url, connection_words, error_words, plain, request_headers
from predictors.cli.event_reader import EventReader
from predictors.cli.outcomes import FAILED, NO_SERVER, REFUSED, VerbFailed
from tests.cli.foreign import Answer, Respond, chunk, events, foreign_server, json_answer, vllm_like
from tests.cluster.apiserver import State, api_server, mounted

PNG = b"\x89PNG\r\n\x1a\n and more"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    return path


@pytest.mark.parametrize(
    ("given_url", "base"),
    [
        ("http://h:1", "http://h:1/"),
        ("h:1", "http://h:1/"),
        ("https://h/v1", "https://h/"),
        ("https://h/openai/v1/", "https://h/"),
        ("https://h/team/a/v1", "https://h/team/a"),
        ("http://[::1]:8080/", "http://[::1]:8080/"),
    ],
)
def test_an_address_may_end_as_openais_clients_want_it(given_url: str, base: str) -> None:
    assert base_url(given_url) == base


@pytest.mark.parametrize("url", ["", "http://", "ftp://h", "http://h:99999999", "file:///etc"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(VerbFailed) as failed:
        base_url(url)
    assert failed.value.exit_code == REFUSED


@pytest.mark.parametrize("key", ["a\nb", "ä", " ", "a b", "x" * 5000])
def test_a_key_that_would_break_a_header_is_refused(key: str) -> None:
    with pytest.raises(VerbFailed, match="API key"):
        request_headers(key)


@pytest.mark.parametrize(
    "body",
    [
        {"error": "it is so"},
        {"error": {"message": "it is so", "type": "x"}},
        {"object": "error", "message": "it is so", "code": 404},
        {"detail": "it is so"},
        {"detail": [{"loc": ["body"], "msg": "it is so"}]},
    ],
    ids=["v2", "openai", "vllm", "fastapi", "pydantic"],
)
def test_the_words_of_every_kind_of_error_body_are_found(body: dict[str, object]) -> None:
    assert error_words(body) == "it is so"


def test_control_characters_of_a_server_never_reach_the_terminal() -> None:
    assert plain("\x1b]0;title\x07a\tb\nc\x9b2J\u202e") == "]0;titlea\tb\nc2J"


@given(st.lists(st.sampled_from(["a", "b c", ""]), max_size=5), st.integers(1, 9))
def test_events_do_not_depend_on_how_their_bytes_are_cut(texts: list[str], size: int) -> None:
    _, _, content = events(*[{"text": text} for text in texts])
    content = b": comment\r\n\r\n" + content.replace(b"\n", b"\r\n")
    reader, found = EventReader(), []
    for start in range(0, len(content), size):
        found += list(reader.feed(content[start : start + size]))
    assert [each["text"] for each in found] == texts
    assert reader.is_done


def test_nothing_that_listens_is_one_sentence_and_its_own_exit_code(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held_ports(1) as (port,):
        url = f"http://127.0.0.1:{port}"
        assert main(["ask", str(picture), "what?", "--url", url]) == NO_SERVER
        assert capsys.readouterr().err.startswith(f"error: nothing listens at {url}; ")
        assert main(["ask", str(picture), "what?", "--url", url, "--json"]) == NO_SERVER
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["exit_code"] == NO_SERVER


def test_https_to_a_server_without_tls_says_so(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with foreign_server() as url:
        secure = url.replace("http://", "https://")
        assert main(["ask", str(picture), "what?", "--url", secure]) == NO_SERVER
    assert capsys.readouterr().err == (
        f"error: {secure} does not speak TLS: is its address http://?\n"
    )


def test_an_authority_that_only_a_strict_client_refuses_is_named(tmp_path: Path) -> None:
    folder = mounted(tmp_path / "api")
    strict = ssl.create_default_context(cafile=folder / "ca.crt")
    strict.verify_flags |= ssl.VERIFY_X509_STRICT  # as from Python 3.13 on
    with api_server(folder, State()) as port:
        url = f"https://127.0.0.1:{port}"
        with httpx.Client(verify=strict) as client, pytest.raises(httpx.ConnectError) as refused:
            client.get(url)
    assert connection_words(refused.value, url) == (
        f"{url} can't be trusted: its certificate or authority lacks an extension that RFC 5280 "
        "wants, and Python from 3.13 on"
    )


def whole(answer: Answer | None) -> Respond:
    """Lists a model, and answers a chat with `answer`."""
    return lambda method, path, body: (
        answer if path.endswith("/completions") else vllm_like(method, path, body)
    )


HOSTILE: dict[str, tuple[Answer | None, int]] = {
    "closed": (None, NO_SERVER),
    "html": ((200, "text/html", b"<html>"), NO_SERVER),
    "a list": (json_answer(200, []), NO_SERVER),
    "no choices": (json_answer(200, {"choices": 7}), NO_SERVER),
    "odd choices": (json_answer(200, {"choices": [7, {"delta": [1]}]}), NO_SERVER),
    "half an event": ((200, "text/event-stream", b"data: {"), NO_SERVER),
    "broken event": ((200, "text/event-stream", b"data: {\n\n"), NO_SERVER),
    "deep": ((200, "application/json", b"[" * 100_000), NO_SERVER),
    "error event": (events(chunk("A "), {"error": {"message": "\x1b[2Jlate"}}), FAILED),
    "huge error": ((500, "text/plain", b"x" * 2_000_000), FAILED),
    "redirect": ((302, "text/plain", b""), FAILED),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_server_answers_the_verb_ends_with_a_sentence(
    name: str, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, code = HOSTILE[name]
    with foreign_server(whole(answer)) as url:
        assert main(["ask", str(picture), "what?", "--url", url]) == code
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert "\x1b" not in out + err
    assert err.count("\n") == 1
    assert len(err) < 1000
