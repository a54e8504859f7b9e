"""The README's shell blocks are run in document order, as they stand; only the ports are others.

`make test` is the one that is not run (it would run this): it is checked to be a target and CI's
command. `make serve` is started, asked once ready, used by the blocks after it, and interrupted as
a person would.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from PIL import Image

from predictors.cli.child import held_ports

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
FIRST_SCREEN_LINES = 40
PATIENCE_S = 120.0
pytestmark = pytest.mark.timeout(600)  # all blocks run in one fixture, each within its own patience


class Readme:
    """Runs the blocks of one document against one server."""

    def __init__(self, log: Path, ports: Sequence[int]) -> None:
        self.http_port, self.grpc_port = ports
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.log = log
        self.printed: dict[str, str] = {}
        self.addresses: set[tuple[str, int]] = set()
        self.leftover: list[psutil.Process] = []

    def run(self) -> None:
        """Every block, in order; the server lives from `make serve` to the last block."""
        commands = [block.strip() for block in BLOCKS]
        serve = next(i for i, command in enumerate(commands) if command.startswith("make serve"))
        for command in commands[:serve]:
            self._shell(command)
        with self._serving(commands[serve]):
            self.addresses = listening(self.tree)
            for command in commands[serve + 1 :]:
                self._shell(command)

    def _shell(self, block: str) -> None:
        lines = [line for line in block.splitlines() if not re.match(r"make test\b", line)]
        script = "set -eu -o pipefail\n" + "\n".join(lines).replace(
            "127.0.0.1:8080", f"127.0.0.1:{self.http_port}"
        )
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        self.printed[block] = done.stdout

    @contextmanager
    def _serving(self, block: str) -> Iterator[None]:
        ports = {"PORT": str(self.http_port), "GRPC_PORT": str(self.grpc_port)}
        with self.log.open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", block], cwd=ROOT, env=environment(ports), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            try:
                wait_ready(self.url, process)
                self.tree = [
                    psutil.Process(process.pid),
                    *psutil.Process(process.pid).children(True),
                ]
                yield
                os.killpg(process.pid, signal.SIGINT)
                process.wait(timeout=PATIENCE_S)
            finally:
                _, self.leftover = psutil.wait_procs(self.tree, timeout=PATIENCE_S)
                for each in self.leftover:
                    each.kill()


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """As a person's shell: none of what make and pytest set for their children."""
    drop = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTEST_CURRENT_TEST", "OMP_NUM_THREADS"}
    return {k: v for k, v in os.environ.items() if k not in drop} | (more or {})


def wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when both models answer."""
    deadline = time.monotonic() + PATIENCE_S
    with httpx.Client(base_url=url) as client:
        while time.monotonic() < deadline:
            assert process.poll() is None, "the server ended by itself"
            try:
                if client.get("/v2/health/ready", timeout=PATIENCE_S).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            # the process is another one: there is no event here to wait for but its end
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
    raise AssertionError("the server was not ready in time")


def listening(tree: list[psutil.Process]) -> set[tuple[str, int]]:
    """Every address on which these processes listen."""
    return {
        (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
        for process in tree
        for connection in process.connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Readme:
    """The README, after all its blocks were run."""
    with held_ports(2) as ports:
        ran = Readme(tmp_path_factory.mktemp("readme") / "serve.log", ports)
        ran.run()
    return ran


def only(readme: Readme, word: str) -> str:
    """The output of the one block with this word."""
    found = [printed for block, printed in readme.printed.items() if word in block]
    assert len(found) == 1
    return found[0]


def test_the_demo_draws_two_pictures_and_describes_them(readme: Readme) -> None:
    printed = only(readme, "make demo")
    assert printed.count("\ncaption  ") == 2
    assert "stopped cleanly" in printed
    for name in ("1.png", "2.png"):
        with Image.open(ROOT / "out" / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) >= 64


def test_the_curl_for_a_picture_writes_a_picture(readme: Readme) -> None:
    only(readme, "/v2/models/flux/infer")
    with Image.open(ROOT / "out" / "circle.png") as picture:
        picture.load()
        assert picture.format == "PNG"


def test_the_curl_for_a_chat_prints_a_sentence(readme: Readme) -> None:
    answer = json.loads(only(readme, "/v1/chat/completions"))
    assert len(answer["choices"][0]["message"]["content"].split()) >= 3
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_serve_listens_on_the_loopback_only(readme: Readme) -> None:
    assert readme.addresses == {("127.0.0.1", readme.http_port), ("127.0.0.1", readme.grpc_port)}


def test_an_interrupt_ends_the_server_in_order(readme: Readme) -> None:
    log = readme.log.read_text()
    assert readme.leftover == []
    assert "stopped with exit code 0" in log
    assert "Traceback" not in log


def test_make_test_is_a_target_and_what_ci_runs() -> None:
    assert any(re.search(r"^make test\b", block, re.MULTILINE) for block in BLOCKS)
    assert re.search(r"^test: \$\(STAMP\)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.search(r"^stage test make test$", (ROOT / ".ci/run").read_text(), re.MULTILINE)


def test_the_first_screen_says_what_it_is_and_how_to_run_it() -> None:
    first = "\n".join(README.splitlines()[:FIRST_SCREEN_LINES])
    assert first.count("\n```sh") == len(BLOCKS), "a block that is run is further down"
    order = ["KServe", "docs/pictures/page-chat.png", "make demo", "make serve", "helm install"]
    assert order == sorted(order, key=first.index)
    assert README.index("helm install") < README.index("| Measured on 2 cores")
    assert ".venv/bin/predictors serve" in README


def test_the_map_of_the_repository_is_complete() -> None:
    section = README.split("## Map of the repository\n")[1].split("\n## ")[0]
    packages = {path.name for path in (ROOT / "predictors").iterdir() if path.is_dir()}
    folders = {
        path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")
    }
    not_ours = {"__pycache__", "out", "build", "dist"}
    named = set(re.findall(r"`(?:predictors/)?([\w-]+)`", section)) | {"predictors"}
    wanted = {n for n in packages | folders if n not in not_ours and not n.endswith(".egg-info")}
    assert wanted - named == set()


def test_the_readme_has_no_badges_and_no_news() -> None:
    assert "badge" not in README.lower()
    assert not re.search(r"[\U0001F300-\U0001FAFF]", README)


def test_parity_is_on_the_first_screen_with_tests_that_exist() -> None:
    first = "\n".join(README.splitlines()[:FIRST_SCREEN_LINES])
    named = re.findall(r"`(test_\w+)`\s+in\s+`(tests/[\w/.]+)`", first)
    assert len(named) == 2
    for test, path in named:
        assert f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8")
