"""The blocks of the pages that `tests/blocks.py` gives to this file, run as they stand and in their
order, against one live server; only the ports are others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.blocks import EXAMPLES, ROOT, RUN_BY, Block, blocks_of
from tests.clients.conftest import QUIET
from tests.examples.conftest import ExamplesServer

OURS = {key for key, test in RUN_BY.items() if test == EXAMPLES}
PATIENCE_S = 300.0
pytestmark = pytest.mark.timeout(600)


def text_of(block: Block, served: ExamplesServer) -> str:
    """A block with the ports of the server, without what tests/test_readme.py runs."""
    ports = {8080: served.port, 8081: served.grpc_port, 9000: served.admin_port}
    text = re.sub(r"^make .*\n", "", block.text, flags=re.MULTILINE)
    for port, held in ports.items():
        text = re.sub(rf"(127\.0\.0\.1|localhost):{port}\b", rf"\g<1>:{held}", text)
    return text


def command(block: Block, text: str) -> list[str]:
    if block.language == "javascript":
        if shutil.which("node") is None:
            pytest.skip("node is not installed")
        return ["node", "--input-type=module", "-e", text]
    if block.language == "python":
        return [os.environ["CLIENTS_PYTHON"], "-c", text]
    return ["bash", "-euo", "pipefail", "-c", text]


@pytest.mark.parametrize("page", sorted({page for page, _ in OURS}))
def test_the_blocks_of_a_page_run_as_they_stand(
    served: ExamplesServer, page: str, tmp_path: Path
) -> None:
    mine = [block for block in blocks_of(ROOT / page) if (page, block.language) in OURS]
    for block in mine:
        text = text_of(block, served)
        if not text.strip():
            continue
        ran = subprocess.run(
            command(block, text), cwd=tmp_path, stdin=subprocess.DEVNULL, text=True,
            env=os.environ | {key: value for key, value in QUIET.items() if key != "PYTHONPATH"},
            capture_output=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"[-3000:]
        assert '"error"' not in ran.stdout, f"{block}\n{ran.stdout}"
        assert ran.stdout.strip() or list(tmp_path.iterdir()), f"{block} says nothing"
