"""The demo's requests, its output, and its end if the server fails."""

from __future__ import annotations

import base64
import io
import json
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import pytest

from predictors.__main__ import main
from predictors.cli import child
from predictors.cli import demo as module
from predictors.cli.child import ServerFailed, ServerProcess, free_ports, held_ports
from predictors.cli.demo import Teller, answers, describe, draw_rows
from predictors.cli.outcomes import FAILED, VerbFailed
from tests.fakes import PATIENCE_S

SAY = Teller(io.StringIO())
PNG = b"\x89PNG\r\n\x1a\n not really"
WELL = """
import http.server, signal, sys
port = int(sys.argv[1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v2/models/m/ready" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass
for done in (1, 2):
    print(f"INFO predictors warming: m shape{done} ({done}/2)", file=sys.stderr, flush=True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
"""
ENDS_WELL = WELL + "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nserver.serve_forever()"
ENDS_BADLY = WELL + "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\nserver.serve_forever()"
DIES = "import sys\nsys.exit('no such checkpoint')"
NEVER_READY = "import signal\nsignal.pause()"


class Scripted(ServerProcess):
    """A server process that runs a few lines of Python instead."""

    script = ENDS_WELL

    def command(self) -> Sequence[str]:
        return [sys.executable, "-S", "-c", self.script, str(self.port)]


def scripted(script: str, tmp_path: Path) -> ServerProcess:
    """A server process that runs `script`."""
    process = Scripted({"m": tmp_path}, tmp_path / "deep" / "server.log")
    process.script = script  # type: ignore[attr-defined]
    return process


def client_of(handler: Callable[[httpx.Request], httpx.Response]) -> httpx.Client:
    return httpx.Client(base_url="http://demo", transport=httpx.MockTransport(handler))


def drawn(request: httpx.Request) -> httpx.Response:
    image = {"name": "image", "data": [base64.b64encode(PNG + bytes([i])).decode() for i in (1, 2)]}
    parameters = {"width": 128, "height": 128, "num_inference_steps": 20, "precision": "float32"}
    return httpx.Response(
        200, json={"outputs": [{"name": "seed", "data": [7, 7]}, image], "parameters": parameters}
    )


def sse(*events: dict[str, object]) -> httpx.Response:
    """A response with a stream of OpenAI events."""
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return httpx.Response(200, text="".join([*lines, "data: [DONE]\n\n"]))


def delta(text: str | None) -> dict[str, object]:
    return {"choices": [{"delta": {} if text is None else {"content": text}}]}


def test_one_v2_request_carries_all_prompts(tmp_path: Path) -> None:
    seen: list[httpx.Request] = []
    with client_of(lambda request: (seen.append(request), drawn(request))[1]) as client:
        used, pictures = draw_rows(client, ["first", "second"], tmp_path, [], SAY)
    assert [request.url.path for request in seen] == ["/v2/models/flux/infer"]
    sent = {tensor["name"]: tensor for tensor in json.loads(seen[0].content)["inputs"]}
    assert sent["prompt"]["data"] == ["first", "second"]
    assert sent["seed"]["shape"] == [2]
    assert [picture.name for picture in pictures] == ["1.png", "2.png"]
    assert [picture.read_bytes() for picture in pictures] == [PNG + b"\x01", PNG + b"\x02"]
    assert (used["width"], used["num_inference_steps"]) == (128, 20)


def test_a_picture_is_sent_as_a_data_url_and_the_answer_read_as_a_stream() -> None:
    seen: list[dict[str, object]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return sse(delta(None), delta("A red "), delta("circle."), {"choices": [], "usage": {}})

    with client_of(handler) as client:
        assert "".join(answers(client, PNG)) == "A red circle."
    assert seen[0]["stream"] is True
    content = seen[0]["messages"][0]["content"]  # type: ignore[index]
    url = next(part["image_url"]["url"] for part in content if part["type"] == "image_url")
    assert url == "data:image/png;base64," + base64.b64encode(PNG).decode()


def test_prompt_picture_and_caption_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "1.png"
    picture.write_bytes(PNG)
    with client_of(lambda _: sse(delta("A red "), delta("circle."))) as client:
        said = describe(client, "a red circle", picture, Teller(sys.stdout))
    assert said["caption"] == "A red circle."
    printed = capsys.readouterr().out
    assert "prompt   a red circle" in printed
    assert f"picture  {picture}" in printed
    assert "caption  A red circle.  (" in printed


def test_an_error_status_is_shown_with_the_servers_message(tmp_path: Path) -> None:
    refused = httpx.Response(503, json={"error": "the queue is full"})
    with client_of(lambda _: refused) as client:
        with pytest.raises(httpx.HTTPError, match=r"503: .*the queue is full"):
            draw_rows(client, ["x"], tmp_path, [], SAY)
        with pytest.raises(httpx.HTTPError, match=r"503: .*the queue is full"):
            list(answers(client, PNG))


def test_an_error_inside_a_stream_is_raised() -> None:
    with (
        client_of(lambda _: sse(delta("A "), {"error": {"message": "gone"}})) as client,
        pytest.raises(httpx.HTTPError, match="gone"),
    ):
        list(answers(client, PNG))


def test_progress_is_reported_and_the_server_stopped(tmp_path: Path) -> None:
    progress: list[str] = []
    with scripted(ENDS_WELL, tmp_path) as server:
        server.wait_ready(PATIENCE_S, progress.append)
        process = server._process
    assert progress == ["m shape1 (1/2)", "m shape2 (2/2)"]
    assert process is not None
    assert process.returncode == 0
    assert (tmp_path / "deep" / "server.log").read_text().count("warming") == 2


def test_progress_logged_before_readiness_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, progress = scripted(ENDS_WELL, tmp_path), list[str]()

    def answers_first(client: httpx.Client, model: str) -> bool:
        server._lines.put("INFO predictors warming: m late (1/1)")
        return True

    monkeypatch.setattr(child, "is_ready", answers_first)
    server.wait_ready(PATIENCE_S, progress.append)
    assert progress == ["m late (1/1)"]


def test_a_server_that_dies_raises_with_the_end_of_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerFailed, match="ended while it started\nno such checkpoint"),
        scripted(DIES, tmp_path) as server,
    ):
        server.wait_ready(PATIENCE_S, lambda _: None)


def test_a_server_that_is_never_ready_is_stopped(tmp_path: Path) -> None:
    server = scripted(NEVER_READY, tmp_path)
    with pytest.raises(ServerFailed, match="not ready after 0 s"), server:
        server.wait_ready(0.3, lambda _: None)
    assert server._process is not None
    assert server._process.poll() is not None


def test_a_server_that_ends_with_an_error_code_raises(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerFailed, match="ended with 3"),
        scripted(ENDS_BADLY, tmp_path) as server,
    ):
        server.wait_ready(PATIENCE_S, lambda _: None)


DIED = "the demo failed: the server ended while it started\nno such checkpoint"


def test_the_demos_failure_is_said_with_the_end_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Scripted, "script", DIES)
    monkeypatch.setattr(module, "ServerProcess", Scripted)
    with pytest.raises(VerbFailed) as failed:
        module.run_demo(out=tmp_path)
    assert (failed.value.message, failed.value.exit_code) == (DIED, FAILED)
    capsys.readouterr()
    assert main(["demo", "--out", str(tmp_path), "--json"]) == FAILED
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == {"message": DIED, "exit_code": FAILED}


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(5))) == 5


def test_only_a_server_that_is_given_a_held_port_listens_there() -> None:
    with held_ports(2) as ports:
        assert set(ports).isdisjoint(free_ports(500))
        for port in ports:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
            with (
                socket.create_server(("127.0.0.1", port)),
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S),
            ):
                pass
