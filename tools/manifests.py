"""Writes manifests/<profile>: the chart as rendered for a profile, for `kubectl apply -k`.

`python -m tools.manifests` writes the folders; `--check` fails if they are not current. It needs
helm. Everything that only Helm understands is left out: its labels, the order of its hooks and the
pods of `helm test`.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.chart import CHART, KUBERNETES, PROFILES, helm

FOLDER = CHART.parents[1] / "manifests"
NAMESPACE = "default"
HELMS_LABELS = ("helm.sh/chart", "app.kubernetes.io/managed-by")
HEAD = "# Written by `make manifests` from charts/predictors/values-{profile}.yaml; edit that.\n"
YOURS = (
    "Namespace and image are yours to set: here, or in a kustomization of your own that has this "
    "folder among its resources."
)
QUERIES = "Yours has to repeat `replacements`, which put the namespace into the queries for KEDA."
JOBS = (
    "A Job can't be changed: before applying it again "
    "`kubectl delete job -l app.kubernetes.io/component=precompile`."
)


class Text(str):
    """A string that is dumped as a block, line by line."""


def represent(dumper: yaml.SafeDumper, text: Text) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")


yaml.SafeDumper.add_representer(Text, represent)


def objects(profile: Path) -> list[dict[str, Any]]:
    """The rendered objects of a profile, without anything that only Helm understands."""
    done = helm(
        "template", "predictors", str(CHART), "-n", NAMESPACE, "--kube-version", KUBERNETES,
        "--skip-tests", "-f", str(profile),
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return [plain(each) for each in yaml.safe_load_all(done.stdout) if each]


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """The object without Helm's labels and annotations, and without a namespace, which kustomize
    sets."""
    about = found["metadata"]
    about.pop("namespace", None)
    notes = about.pop("annotations", {})
    kept = {key: value for key, value in notes.items() if not key.startswith("helm.sh/")}
    if kept:
        about["annotations"] = kept
    inner = found.get("spec", {}).get("template", {}).get("metadata", {})
    for labels in (about.get("labels", {}), inner.get("labels", {})):
        for name in HELMS_LABELS:
            labels.pop(name, None)
    return found


def dumped(content: object) -> str:
    """As YAML, with strings of several lines as blocks."""
    return yaml.safe_dump(blocks(content), sort_keys=False, width=100, allow_unicode=True)


def blocks(content: object) -> object:
    """A copy in which every string of several lines is a `Text`."""
    if isinstance(content, dict):
        return {key: blocks(value) for key, value in content.items()}
    if isinstance(content, list):
        return [blocks(value) for value in content]
    return Text(content) if isinstance(content, str) and "\n" in content else content


def queries(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Places of the namespace in an InferenceService's queries, as targets of a replacement.

    A replacement splits the text at a delimiter and replaces one part. Split at the quotes, every
    second part is a label's value.
    """
    metrics = found.get("spec", {}).get("predictor", {}).get("autoScaling", {}).get("metrics", [])
    return [
        {
            "select": {"kind": found["kind"], "name": found["metadata"]["name"]},
            "fieldPaths": [f"spec.predictor.autoScaling.metrics.{i}.external.metric.query"],
            "options": {"delimiter": '"', "index": at},
        }
        for i, metric in enumerate(metrics)
        for at, part in enumerate(metric["external"]["metric"]["query"].split('"'))
        if at % 2 and part == NAMESPACE
    ]


def kustomization(profile: Path, found: list[dict[str, Any]], files: list[str]) -> str:
    image = next(o for o in found if o["kind"] == "ServingRuntime")["spec"]["containers"][0][
        "image"
    ]
    name, _, tag = image.rpartition(":")
    targets = [target for each in found for target in queries(each)]
    content: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "images": [{"name": name, "newName": name, "newTag": tag}],
        "resources": files,
    }
    if targets:
        account = next(o for o in found if o["kind"] == "ServiceAccount")["metadata"]["name"]
        source = {
            "kind": "ServiceAccount", "name": account, "fieldPath": "metadata.namespace",
        }  # fmt: skip
        content["replacements"] = [{"source": source, "targets": targets}]
    about = [profile.read_text(encoding="utf-8").splitlines()[0].lstrip("# "), YOURS]
    about += [QUERIES] * bool(targets) + [JOBS] * any(each["kind"] == "Job" for each in found)
    lines = [f"# {line}\n" for part in about for line in textwrap.wrap(part, 98)]
    return HEAD.format(profile=profile_name(profile)) + "".join(lines) + dumped(content)


def profile_name(profile: Path) -> str:
    """`laptop` of values-laptop.yaml."""
    return profile.stem.removeprefix("values-")


def texts() -> dict[Path, str]:
    """Text of every file, by its path: one file per kind, and the kustomization."""
    written = {}
    for profile in PROFILES:
        found = objects(profile)
        head = HEAD.format(profile=profile_name(profile))
        kinds = {each["kind"]: "" for each in found}
        for each in found:
            kinds[each["kind"]] += "---\n" * bool(kinds[each["kind"]]) + dumped(each)
        files = {f"{kind.lower()}.yaml": head + text for kind, text in sorted(kinds.items())}
        files["kustomization.yaml"] = kustomization(profile, found, list(files))
        folder = FOLDER / profile_name(profile)
        written |= {folder / name: text for name, text in files.items()}
    return written


def main() -> int:
    wanted = texts()
    if "--check" in sys.argv[1:]:
        there = {path: path.read_text(encoding="utf-8") for path in FOLDER.rglob("*.yaml")}
        stale = sorted(path for path in {*wanted, *there} if wanted.get(path) != there.get(path))
        for path in stale:
            print(f"not current: {path.relative_to(FOLDER.parent)}")
        return 1 if stale else 0
    shutil.rmtree(FOLDER, ignore_errors=True)
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
