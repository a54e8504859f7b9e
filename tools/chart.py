"""Generates charts/predictors/README.md from the comments of values.yaml, and the settings in
values.schema.json from predictors/settings; files/schema.json is its copy for the templates. A
comment that begins with `# --` describes the key below it. A key without one is part of its
parent's row, or a map whose own keys are described.
"""

from __future__ import annotations

import json
import re
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import yaml

from predictors.settings import Settings, bounds_of
from tools.configuration import descriptions, wrapped

CHART = Path(__file__).resolve().parents[1] / "charts/predictors"
LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.-]+):(?P<rest>.*)$")
HEAD = """# predictors

<!-- Written by `make docs` from values.yaml; edit the comments there. -->

{description}. Needs Kubernetes {kubernetes} and KServe {kserve} in Standard mode.

    helm install predictors charts/predictors -f charts/predictors/values-laptop.yaml

{profiles}
[How to deploy](../../docs/deploy.md) goes through installing, upgrading, storage, scaling and
air-gapped clusters. Values that can't be used are refused, with the key, before anything is
applied, in a sentence with the remedy. `helm lint` and editors read `values.schema.json` as well.

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

`models.<name>` takes the same keys as `defaults`; a model needs only those that differ.

Each entry has the key, its default and its meaning.

"""


def comment_rows(text: str) -> list[tuple[str, str]]:
    """Dotted key and description of every described key, in the file's order."""
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
    """Keys with a value that have no row, neither their own nor a parent's."""
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
    for part in key.split("."):
        values = values[part]
    return values


def shown(value: object) -> str:
    """A default as JSON, which is also YAML."""
    return f"`{json.dumps(value)}`"


def readme() -> str:
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    values, rows = yaml.safe_load(text), comment_rows(text)
    if missing := undescribed(values, rows):
        raise SystemExit(f"values.yaml: no `# --` comment describes {', '.join(missing)}")
    about = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    profiles = "".join(
        wrapped(f"- `{path.name}`: {first_paragraph(path)}") + "\n"
        for path in sorted(CHART.glob("values-*"))
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
        default = "" if parted else f" ({shown(at(values, key))})"
        lines.append(wrapped(f"- **`{key}`**{default}: {words}") + "\n")
    return head + "".join(lines)


def first_paragraph(path: Path) -> str:
    """The comment at the beginning of a profile, on one line."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# "))
    return " ".join(words)


def setting_schema(knob: Field[Any]) -> dict[str, Any]:
    """The schema of one setting, by its default and its bounds."""
    bounds = bounds_of(knob)
    if bounds.choices:
        return {"enum": list(bounds.choices)}
    if isinstance(knob.default, bool):
        return {"type": "boolean"}
    if isinstance(knob.default, int | float):
        kind = "integer" if isinstance(knob.default, int) else "number"
        most = {"maximum": bounds.most} if bounds.most < float("inf") else {}
        return {"type": kind, "minimum": bounds.least, **most}
    return {"type": "string"}


def settings_schema() -> dict[str, Any]:
    """The schema of a model's `settings`: every group of a server, and nothing else. The activator
    is another process, which has values of its own."""
    sections = {}
    for section in (each for each in fields(Settings) if each.name != "activator"):
        kind = type(getattr(Settings(), section.name))
        texts = descriptions(kind)
        sections[section.name] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                knob.name: setting_schema(knob) | {"description": texts[knob.name]}
                for knob in fields(kind)
            },
        }
    return {"type": "object", "additionalProperties": False, "properties": sections}


def schema() -> str:
    """The text of values.schema.json: the present file with its settings replaced."""
    found = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    found["definitions"]["settings"] = settings_schema()
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def without_words(found: Any) -> Any:
    """A schema without descriptions and comments."""
    if isinstance(found, list):
        return [without_words(each) for each in found]
    if not isinstance(found, dict):
        return found
    words = {"$schema", "$comment", "title"} | (
        {"description"} if isinstance(found.get("description"), str) else set()
    )
    return {key: without_words(each) for key, each in found.items() if key not in words}


def checked_schema() -> str:
    """The text of files/schema.json, to which the templates hold values."""
    found = without_words(json.loads(schema()))
    for key in ("if", "then"):  # what they say of `wakeQuery` the templates say in words
        del found[key]
    return json.dumps(found, separators=(",", ":")) + "\n"


def files() -> dict[Path, str]:
    """Text of the files, by their paths."""
    return {
        CHART / "README.md": readme(),
        CHART / "values.schema.json": schema(),
        CHART / "files/schema.json": checked_schema(),
    }
