"""Writes charts/predictors/README.md from the comments of values.yaml, and the settings of
values.schema.json from predictors/settings.py. Knows no value and no knob by name.

`python tools/chart.py` writes the files, `--check` says whether they are current. A comment that
begins with `# --` describes the key beneath it; a key without one is a part of its parent's row,
or a map whose own keys are described.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from predictors.settings import CHOICES, LEAST, PREFIX, Settings
from tools.configuration import sentences

CHART = Path(__file__).resolve().parents[1] / "charts/predictors"
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.-]+):(?P<rest>.*)$")
HEAD = """# predictors

<!-- Written by `make docs` from values.yaml; edit the comments there. -->

{description}. Needs Kubernetes {kubernetes} and KServe {kserve} in Standard mode.

    helm install predictors charts/predictors -f charts/predictors/values-laptop.yaml

| profile | |
|---|---|
{profiles}
[How to deploy](../../docs/deploy.md) goes through installing, upgrading, storage, scaling and
air-gapped clusters. Values that can't be used are refused, with the key, before anything is
applied: unknown keys and wrong types by `values.schema.json`, combinations by the templates.

A model is a few lines; its name is that of the InferenceService and in every protocol:

```yaml
models:
  flux:
    format: flux
    storage:
      uri: hf://black-forest-labs/FLUX.1-schnell
    gpu:
      count: 1
    resources:
      requests: {{cpu: "4", memory: 24Gi}}
      limits: {{memory: 64Gi}}
```

## Values

What `defaults` holds is what `models.<name>` takes; a model says only what differs.

| key | default | |
|---|---|---|
"""


def comment_rows(text: str) -> list[tuple[str, str]]:
    """Dotted key and sentence of every described key, in the file's order."""
    rows: list[tuple[str, str]] = []
    path: list[tuple[int, str]] = []
    words = ""
    for line in text.splitlines():
        if line.lstrip().startswith("# -- "):
            words = line.lstrip().removeprefix("# -- ")
        elif match := LINE.match(line):
            indent = len(match["indent"])
            path = [(i, key) for i, key in path if i < indent] + [(indent, match["key"])]
            if words:
                rows.append((".".join(key for _, key in path), words))
            words = ""
    return rows


def undescribed(values: dict[str, Any], rows: list[tuple[str, str]]) -> list[str]:
    """Keys with a value that no row stands for, neither its own nor a parent's."""
    described = {key for key, _ in rows}

    def walk(value: object, path: str) -> list[str]:
        if isinstance(value, dict) and value:
            inner = [walk(each, f"{path}.{key}".lstrip(".")) for key, each in value.items()]
            return [key for keys in inner for key in keys]
        parents = path.split(".")
        known = {".".join(parents[:n]) for n in range(1, len(parents) + 1)} - {"defaults"}
        return [] if known & described else [path]

    return walk(values, "")


def at(values: Any, key: str) -> Any:
    """The value at a dotted key."""
    for part in key.split("."):
        values = values[part]
    return values


def shown(value: object) -> str:
    """A default as JSON, which YAML reads as well."""
    return f"`{json.dumps(value)}`".replace("|", "\\|")


def readme() -> str:
    """The text of README.md."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    values, rows = yaml.safe_load(text), comment_rows(text)
    if missing := undescribed(values, rows):
        raise SystemExit(f"values.yaml: no `# --` comment describes {', '.join(missing)}")
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    profiles = "".join(
        f"| `{path.name}` | {first_paragraph(path)} |\n" for path in sorted(CHART.glob("values-*"))
    )
    head = HEAD.format(
        description=about["description"],
        kubernetes=about["kubeVersion"].removesuffix("-0"),
        kserve=about["annotations"]["kserve.io/version"],
        profiles=profiles,
    )
    keys = {key for key, _ in rows}
    lines = []
    for key, words in rows:
        parted = any(other.startswith(f"{key}.") for other in keys)
        default = "" if parted else shown(at(values, key))
        lines.append(f"| `{key}` | {default} | {words} |\n")
    return head + "".join(lines)


def first_paragraph(path: Path) -> str:
    """The comment that a profile begins with, on one line, commands left out."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# "))
    return " ".join(words)


def knob(name: str, value: object) -> dict[str, Any]:
    """The schema of one setting: by its variable's name and its default."""
    if name in CHOICES:
        return {"enum": list(CHOICES[name])}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer", "minimum": LEAST.get(name, 0)}
    if isinstance(value, float):
        return {"type": "number", "minimum": LEAST.get(name, 0)}
    return {"type": "string"}


def settings_schema() -> dict[str, Any]:
    """What `settings` of a model may hold: every section and every knob, and nothing else."""
    sections = {}
    for section in fields(Settings):
        values = getattr(Settings(), section.name)
        words = sentences(type(values).__name__)
        sections[section.name] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                each.name: knob(
                    f"{PREFIX}_{section.name}_{each.name}".upper(), getattr(values, each.name)
                )
                | {"description": words[each.name]}
                for each in fields(values)
            },
        }
    return {"type": "object", "additionalProperties": False, "properties": sections}


def schema() -> str:
    """The text of values.schema.json: as it is, with the settings anew."""
    found = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    found["definitions"]["settings"] = settings_schema()
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or check both files; returns the exit code."""
    for name, text in {"README.md": readme(), "values.schema.json": schema()}.items():
        path = CHART / name
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
