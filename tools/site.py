"""Lays the documentation out for its site, `make site`: the pages of docs/, pages of the repository
beside them, and the files of docs/examples as pages. Links to other files of the repository become
their names, since the site has no such pages.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "site"
BESIDE = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security-policy.md",
    "charts/predictors/README.md": "project/chart.md",
    "checkpoints/shapes-flux/README.md": "project/shapes-flux.md",
    "checkpoints/shapes-loras/README.md": "project/shapes-loras.md",
    "checkpoints/shapes-qwen-vl/README.md": "project/shapes-qwen-vl.md",
}
"""Pages outside docs/, by their path in the repository, and where they are on the site."""
LANGUAGES = {".py": "python", ".mjs": "javascript", ".sh": "sh"}
"""Of the examples, by their suffix."""
LINK = re.compile(r"(?<!!)\[((?:[^\]\[]|\[[^\]]*\])+)\]\(([^)#\s]*)(#[^)\s]*)?\)")
BLOCK = re.compile(r"^([ ]*```.*?^[ ]*```$)", re.MULTILINE | re.DOTALL)


def sources() -> dict[str, str]:
    """Every page of the site: its path there, by its path in the repository."""
    pages = {
        f"docs/{path.relative_to(ROOT / 'docs').as_posix()}": path
        for path in (ROOT / "docs").rglob("*.md")
    }
    found = {source: source.removeprefix("docs/") for source in pages}
    for path in sorted((ROOT / "docs" / "examples").iterdir()):
        if path.suffix in LANGUAGES:
            found[f"docs/examples/{path.name}"] = f"examples/{path.name}.md"
    return found | BESIDE


def page(source: str, pages: Mapping[str, str]) -> str:
    """The Markdown of a page of the site, with its links as the site has them."""
    text = (ROOT / source).read_text(encoding="utf-8")
    suffix = PurePosixPath(source).suffix
    if suffix in LANGUAGES:
        return f"# {PurePosixPath(source).name}\n\n```{LANGUAGES[suffix]}\n{text}```\n"

    def rewritten(link: re.Match[str]) -> str:
        label, target, anchor = link[1], link[2], link[3] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return link[0]
        path = os.path.normpath(PurePosixPath(source).parent / target)
        path = f"{path}/README.md" if f"{path}/README.md" in pages else path
        if path in pages:
            start = PurePosixPath(pages[source]).parent
            return f"[{label}]({os.path.relpath(pages[path], start)}{anchor})"
        return label if path in label else f"{label} (`{path}`)"

    parts = BLOCK.split(text)  # code blocks are every second part
    return "".join(p if i % 2 else LINK.sub(rewritten, p) for i, p in enumerate(parts))


def configuration(pages: Mapping[str, str]) -> str:
    """`zensical.toml` with the files that each "*" of `nav` stands for."""

    def files(star: re.Match[str]) -> str:
        named = sorted(p for p in pages.values() if p.startswith(star[1]))
        return ", ".join(f'"{p}"' for p in named if not p.endswith("README.md"))

    text = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    return re.sub(r'"([\w-]+/)\*"', files, text)


def lay_out(out: Path) -> None:
    """Write all pages, their pictures and the configuration into `out`."""
    shutil.rmtree(out, ignore_errors=True)
    pages = sources()
    for source, target in pages.items():
        path = out / "pages" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(source, pages), encoding="utf-8")
    shutil.copytree(ROOT / "docs" / "pictures", out / "pages" / "pictures")
    (out / "zensical.toml").write_text(configuration(pages), encoding="utf-8")


if __name__ == "__main__":
    lay_out(OUT)
    sys.stdout.write(f"{OUT.relative_to(ROOT)}: {len(sources())} pages\n")
