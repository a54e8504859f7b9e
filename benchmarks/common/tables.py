"""Tables as text: padded columns for a terminal, Markdown for the pages of docs/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Cells padded to equal widths; the first line is the head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose head is the first row; empty without rows."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    if not lines:
        return ""
    rule = "|" + "---|" * (lines[0].count(" | ") + 1)
    return "\n".join((lines[0], rule, *lines[1:]))
