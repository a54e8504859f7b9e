"""Ctrl-C in processes of verbs: during their imports, and while a server lets them wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest

from predictors.__main__ import VERBS
from tests.cli.foreign import foreign_server, vllm_like
from tests.fakes import PATIENCE_S
from tests.http.echo import png


@pytest.mark.parametrize(
    "verb",
    [
        ["ask", "PICTURE", "what?", "--url", "URL"],
        ["bench", "URL", "--clients", "2"],
        ["bench", "URL", "--rate", "5"],
        ["smoke", "URL"],
    ],
    ids=lambda verb: " ".join(verb),
)
def test_ctrl_c_ends_a_verb_that_waits(verb: list[str], tmp_path: Path) -> None:
    asked, over = threading.Event(), threading.Event()

    def silent(method: str, path: str, body: Any) -> Any:
        if not path.endswith("/completions"):
            return vllm_like(method, path, body)
        asked.set()
        over.wait(PATIENCE_S)
        return None

    (tmp_path / "picture.png").write_bytes(png())
    with foreign_server(silent) as url:
        places = {"URL": url, "PICTURE": str(tmp_path / "picture.png")}
        words = [places.get(word, word) for word in verb]
        command = [sys.executable, "-m", "predictors", *words]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert asked.wait(PATIENCE_S)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE_S)
        over.set()
    assert (process.returncode, err) == (130, "interrupted\n")


AT_IMPORT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == os.environ["AT_IMPORT_OF"]:
            sys.meta_path.remove(self)
            os.write(2, b"now\\n")
            # in code compiled from a text, which Python remembers in its exit code
            exec("os.kill(os.getpid(), signal.SIGINT)")

sys.meta_path.insert(0, Interrupting())
"""
"""A `sitecustomize` that presses Ctrl-C when a module is imported."""
ROOT = Path(__file__).resolve().parents[2]
MODEL = f"--model=flux={ROOT / 'checkpoints/shapes-flux'}"
IN_VERBS = {
    "serve": (["--port=0", "--grpc-port=0", MODEL], "torch"),
    "warm": ([MODEL], "torch"),
    "profile": ([MODEL], "torch"),
    "check": ([str(ROOT / "checkpoints/shapes-flux")], "predictors.operators.check"),
    "draw": (["a", "-o", "x.png", f"--model={ROOT / 'checkpoints/shapes-flux'}"], "torch"),
}


def interrupted_at(module: str, folder: Path, command: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command to which Ctrl-C comes at the import of a module."""
    (folder / "sitecustomize.py").write_text(AT_IMPORT)
    environ = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "AT_IMPORT_OF": module}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=folder)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("module", ["argparse", "prometheus_client"])
def test_ctrl_c_in_the_imports_before_a_verb_leaves_no_traceback(
    module: str, verb: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "predictors", verb]
    assert interrupted_at(module, tmp_path, command) == (130, "", "now\ninterrupted\n")


def test_nor_in_those_of_the_installed_command(tmp_path: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["predictors"].partition(":")
    command = [sys.executable, "-c", f"from {module} import {function}; {function}()", "--help"]
    ended = interrupted_at("prometheus_client", tmp_path, command)
    assert ended == (130, "", "now\ninterrupted\n")
    whole = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert whole.stdout.startswith("usage: predictors ")


@pytest.mark.parametrize("verb", IN_VERBS)
def test_nor_in_the_imports_of_a_verb(verb: str, tmp_path: Path) -> None:
    flags, module = IN_VERBS[verb]
    command = [sys.executable, "-m", "predictors", verb, *flags]
    code, out, err = interrupted_at(module, tmp_path, command)
    assert (code, out) == (130, "")
    assert err.endswith("now\ninterrupted\n")
    assert "Traceback" not in err


def test_where_ctrl_c_is_ignored_it_stays_so(tmp_path: Path) -> None:
    """As in the background of a shell, whose terminal sends it to everything."""
    words = "trap '' INT; exec \"$0\" -m predictors --version"
    code, out, err = interrupted_at(
        "prometheus_client", tmp_path, ["bash", "-c", words, sys.executable]
    )
    assert (code, err) == (0, "now\n")
    assert out.startswith("vision-predictors ")
