"""The code blocks of the pages, by language, and the test that runs those of a page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "charts").rglob("README.md"),
        *(ROOT / "checkpoints").glob("*/README.md"),
    ]
)
EXAMPLES = "tests/examples/test_pages.py"
RUN_BY = {
    ("README.md", "sh"): "tests/test_readme.py",
    ("docs/api.md", "sh"): "tests/product/test_api_page.py",
    ("docs/api.md", "python"): "tests/product/test_api_page.py",
    ("docs/deploy.md", "sh"): "tests/e2e/test_docs.py",
    ("docs/index.md", "sh"): EXAMPLES,
    ("docs/loras.md", "python"): EXAMPLES,
    ("docs/loras.md", "sh"): EXAMPLES,
    ("docs/structured-output.md", "python"): EXAMPLES,
    ("docs/tools.md", "sh"): EXAMPLES,
    ("docs/use-it-from.md", "javascript"): EXAMPLES,
    ("docs/use-it-from.md", "python"): EXAMPLES,
    ("docs/use-it-from.md", "sh"): EXAMPLES,
    ("docs/your-own-models.md", "console"): "tests/field/test_check.py",
}
"""The test that runs the blocks of a page in a language. All other blocks are read."""


@dataclass(frozen=True)
class Block:
    """A block of code: its page from the root, the line of its fence, its language and text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    page = path.relative_to(ROOT).as_posix()
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[2], found[3])
        for found in FENCE.finditer(text)
    ]


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page)]
