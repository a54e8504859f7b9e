"""Writes every file that is generated from code: pages, charts, alert rules, the dashboard, and the
Helm chart's README and schema. `python -m tools.docs` writes them; with `--check` it lists those
that are not current and exits with 1.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tools import (
    alerts,
    chart,
    command_line,
    configuration,
    dashboard,
    metrics,
    openai_fields,
)

ROOT = Path(__file__).resolve().parents[1]


GENERATORS = (configuration, command_line, metrics, openai_fields, alerts, dashboard, chart)


def generated() -> dict[Path, str]:
    """Text of every generated file, by its path."""
    return {path: text for generator in GENERATORS for path, text in generator.files().items()}


def stale(texts: Mapping[Path, str]) -> list[str]:
    """Paths of the files on disk that differ from `texts`."""
    return [
        path.relative_to(ROOT).as_posix()
        for path, text in texts.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main() -> int:
    if "--check" in sys.argv[1:]:
        found = stale(generated())
        print("".join(f"not current: {path}\n" for path in found), end="")
        return 1 if found else 0
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
