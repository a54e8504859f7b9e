"""JavaScript through TypeScript's compiler: the blocks and examples of the documentation strictly,
the modules of the server's two pages beside the declarations in `elements.d.ts`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.blocks import ROOT, all_blocks
from tests.page.conftest import START_S

COMPILER = os.environ.get("TYPESCRIPT", "")
ENDS = {"javascript": ".mjs", "js": ".mjs", "typescript": ".mts", "ts": ".mts"}
FLAGS = (
    "--noEmit", "--allowJs", "--checkJs", "--skipLibCheck", "--target", "es2023",
    "--module", "nodenext", "--lib", "es2023,dom,dom.iterable,dom.asynciterable",
)  # fmt: skip
STRICT = ("--strict", "--noImplicitAny", "false")
"""All but types of parameters, which JavaScript has in comments only."""
PAGES = ("predictors/playground/page", "predictors/protocol/openapi/page")


def complaints(folder: Path, *flags: str) -> str:
    """The compiler's report on the files in `folder`; empty if all is well."""
    assert COMPILER, "TYPESCRIPT names no compiler: run `make test-page`"
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".json")
    command = ["node", COMPILER, *FLAGS, *flags, *names]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=START_S)
    assert bool(ran.returncode) == bool(ran.stdout), ran.stderr
    return ran.stdout


def test_every_block_and_example_has_types(tmp_path: Path) -> None:
    blocks = [block for block in all_blocks() if block.language in ENDS]
    examples = [*(ROOT / "docs").rglob("*.mjs"), *(ROOT / "docs").rglob("*.ts")]
    assert blocks
    assert examples
    for number, block in enumerate(blocks):
        (tmp_path / f"block_{number}{ENDS[block.language]}").write_text(block.text)
    for path in examples:
        shutil.copy(path, tmp_path / path.name)
    assert complaints(tmp_path, *STRICT) == ""


def test_the_pages_own_modules_have_types(tmp_path: Path) -> None:
    for number, page in enumerate(PAGES):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in (ROOT / page).glob("*.js"):
            shutil.copy(path, folder)
        (folder / "package.json").write_text('{"type": "module"}')
        shutil.copy(Path(__file__).with_name("elements.d.ts"), folder)
        assert complaints(folder) == ""


def test_a_wrong_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "wrong.mjs").write_text('console.log(await (await fetch("/v1")).jsn());')
    assert "Property 'jsn' does not exist on type 'Response'" in complaints(tmp_path, *STRICT)
