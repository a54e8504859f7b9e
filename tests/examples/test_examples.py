"""Every file of docs/examples, run as a reader would in an empty folder, on one live server."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from checkpoints.training import checker
from tests.clients.conftest import QUIET
from tests.examples.conftest import ExamplesServer

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
PATIENCE_S = 400.0
pytestmark = pytest.mark.timeout(600)

Run = Callable[..., str]


def command(name: str) -> list[str]:
    """How a file is run. KServe's client is in this environment, the others in the clients'."""
    path = str(EXAMPLES / name)
    if path.endswith(".sh"):
        return ["bash", path]
    if path.endswith(".mjs"):
        return ["node", path]
    python = sys.executable if "kserve" in name else os.environ.get("CLIENTS_PYTHON")
    assert python, "CLIENTS_PYTHON names no environment: run `make test-clients`"
    return [python, path]


@pytest.fixture
def run(served: ExamplesServer, tmp_path: Path) -> Run:
    """`run(name)`: what the file prints. It runs in `tmp_path`."""

    def in_folder(name: str, **more: str) -> str:
        where = {
            "PREDICTORS_URL": served.url,
            "PREDICTORS_GRPC": f"127.0.0.1:{served.grpc_port}",
        }
        quiet = {key: value for key, value in QUIET.items() if key != "PYTHONPATH"}
        ran = subprocess.run(
            command(name), cwd=tmp_path, env=os.environ | quiet | where | more,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"[-3000:]
        return ran.stdout

    return in_folder


def seen(path: Path) -> tuple[set[tuple[str, str]], str]:
    """Colour and kind of each figure of a picture, and its ground, read from its pixels."""
    with Image.open(path) as picture:
        scene = checker.read(picture.convert("RGB"))
    assert scene is not None, path
    return {(figure.colour, figure.kind) for figure in scene.figures}, scene.ground


RED_CIRCLE = ({("red", "circle")}, "white")


def test_curl_draws_edits_and_describes(run: Run, tmp_path: Path) -> None:
    printed = run("curl.sh").splitlines()
    assert seen(tmp_path / "circle.png") == RED_CIRCLE
    assert seen(tmp_path / "edited.png") == ({("blue", "circle")}, "white")
    assert printed[0] == printed[1] == "A large blue circle on a white background."


def test_openais_client_shows_previews_and_words(run: Run, tmp_path: Path) -> None:
    printed = run("openai_client.py")
    assert re.findall(r"preview (\d)", printed) == ["0", "1"]
    assert seen(tmp_path / "circle.png") == RED_CIRCLE
    assert "red circle" in printed


def test_langchain_streams_and_parses(run: Run, tmp_path: Path) -> None:
    printed = run("langchain_chat.py")
    assert seen(tmp_path / "triangle.png") == ({("green", "triangle")}, "white")
    assert "green triangle" in printed
    assert "colour='green'" in printed


def test_tritonclient_asks_for_two_rows(run: Run, tmp_path: Path) -> None:
    first, second = run("triton_client.py").splitlines()
    assert seen(tmp_path / "picture-1.png") == RED_CIRCLE
    assert "red circle" in first
    assert "blue square" in second


def test_kserves_clients_draw_and_ask(run: Run, tmp_path: Path) -> None:
    assert "red circle" in run("kserve_client.py")
    assert seen(tmp_path / "circle.png") == RED_CIRCLE


def test_javascript_streams_both(run: Run) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    printed = run("javascript.mjs").splitlines()
    assert printed[:3] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert "red circle" in printed[3]


def test_a_batch_of_100_prompts_is_drawn(run: Run, tmp_path: Path) -> None:
    run("batch.py")
    files = sorted((tmp_path / "batch").iterdir())
    assert len(files) == 100
    assert len({file.read_bytes() for file in files}) == 100


def test_a_conversation_goes_on_about_its_picture(run: Run) -> None:
    first, second, third = run("picture_chat.py").splitlines()
    assert "red circle" in first
    assert "blue square" in first
    assert re.search(r"\b(2|two)\b", second)
    assert "red" in third.split("?")[1]


def test_a_mask_keeps_the_left_half(run: Run, tmp_path: Path) -> None:
    run("edit_with_mask.py")
    assert seen(tmp_path / "before.png")[0] == {("red", "circle"), ("blue", "square")}
    assert seen(tmp_path / "after.png")[0] == {("red", "circle"), ("green", "triangle")}


def test_adapters_are_mixed_in_one_batch(run: Run, tmp_path: Path) -> None:
    run("adapters_mixed.py")
    with Image.open(tmp_path / "adapters.png") as sheet:
        side = sheet.height
        for number in range(4):
            sheet.crop((number * side, 0, (number + 1) * side, side)).save(
                tmp_path / f"{number}.png"
            )
    drawn = [seen(tmp_path / f"{number}.png") for number in range(4)]
    red, cyan = {("red", "circle")}, {("cyan", "circle")}
    assert drawn == [(red, "white"), (cyan, "white"), (red, "gray"), (cyan, "gray")]


def test_pictures_become_rows_of_a_table(run: Run) -> None:
    rows = list(csv.DictReader(run("json_table.py").splitlines()))
    assert {row["picture"] for row in rows} == {"1", "2", "3"}
    assert [(row["colour"], row["kind"], row["ground"]) for row in rows] == [
        ("red", "circle", "white"),
        ("blue", "square", "black"),
        ("green", "triangle", "gray"),
    ]


def test_an_agent_calls_its_tool_and_says_the_result(run: Run) -> None:
    called, said = run("agent.py").splitlines()
    assert called == "count_shapes({}) = 2"
    assert re.search(r"\b(2|two)\b", said), said


@contextmanager
def recording(answer: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """A server that answers every POST with `answer`: its address, and what it was sent."""
    asked: list[tuple[str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # http.server calls it by this name
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body | {"authorization": self.headers["Authorization"]}))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_dashboard_is_sent_as_grafanas_api_takes_it(run: Run) -> None:
    """Grafana can't be installed here (docs/dashboard.md): a recording server stands in for it."""
    with recording({"url": "/d/predictors"}) as (url, asked):
        printed = run("grafana_import.py", GRAFANA_URL=url, GRAFANA_TOKEN="secret")
    ((path, body),) = asked
    assert printed == "/d/predictors\n"
    assert path == "/api/dashboards/db"
    assert body["authorization"] == "Bearer secret"
    assert body["overwrite"] is True
    assert body["dashboard"]["id"] is None
    assert body["dashboard"]["panels"]


def test_every_example_has_a_test() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    names = [path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".sh", ".mjs"}]
    assert [name for name in names if f'run("{name}"' not in here] == []
