"""Ctrl-C in processes of the client verbs while a server lets them wait."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

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
