"""Every shell block of docs/deploy.md, in its order, by one shell, in a namespace of its own.

What stands in for a reader's own things: `REPOSITORY` and `TAG` are the image under test, and where
the cluster has no default StorageClass a volume for the page's claim waits for it. Nothing else is
replaced. Blocks called `console` are not run; `yaml` blocks are values and are rendered.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.helm import CHART
from tests.e2e.kube import Kube, run

PAGE = ROOT / "docs" / "deploy.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WHOLE_PAGE_S = 400


def blocks(language: str) -> list[str]:
    """The page's code blocks of one language."""
    return [body for name, body in BLOCK.findall(PAGE.read_text()) if name == language]


@pytest.fixture
def namespace(cluster_up: None, tmp_path: Path) -> Iterator[str]:
    """A name for the page's namespace, which the page makes and removes, and a volume for it."""
    name = f"e2e-docs-{secrets.token_hex(2)}"
    kube = Kube(name)
    has_default = "(default)" in run("kubectl", "get", "storageclass", "--no-headers")
    if not has_default:
        tmp_path.chmod(0o777)  # pods write as 10001
        kube.apply(volume(name, tmp_path))
    yield name
    run("kubectl", "delete", "namespace", name, "--ignore-not-found", "--wait", timeout_s=180)
    run("kubectl", "delete", "pv", name, "--ignore-not-found", timeout_s=60)


def volume(namespace: str, folder: Path) -> dict[str, object]:
    """A volume on a folder of the node, for the claim `checkpoints` of that namespace alone."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": namespace},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "hostPath": {"path": str(folder)},
            "claimRef": {"namespace": namespace, "name": "checkpoints"},
        },
    }


def test_the_page_has_shell_blocks_and_only_languages_that_are_checked() -> None:
    languages = [name for name, _ in BLOCK.findall(PAGE.read_text())]
    assert set(languages) == {"sh", "console", "yaml"}
    assert languages.count("sh") >= 8
    assert PAGE.read_text().count("```") == 2 * len(languages), "a block that was not recognised"


@pytest.mark.parametrize("values", blocks("yaml"), ids=lambda body: body.split("\n")[0].rstrip(":"))
def test_every_values_block_is_taken_by_the_chart(cluster_up: None, values: str) -> None:
    chosen = ("-f", str(CHART / "values-laptop.yaml"), "-f", "-")
    run("helm", "template", "demo", str(CHART), "--kube-version", "1.34.0", *chosen, stdin=values)


def test_every_shell_block_runs_in_the_order_of_the_page(
    namespace: str, kept: Path, tmp_path: Path
) -> None:
    repository, _, tag = os.environ["E2E_IMAGE"].rpartition(":")
    given = {"NAMESPACE": namespace, "REPOSITORY": repository, "TAG": tag}
    script = tmp_path.with_suffix(".sh")
    script.write_text("set -euxo pipefail\n" + "\n".join(blocks("sh")))
    folder = tmp_path.with_suffix(".cwd")
    folder.mkdir()
    # the page says `charts/predictors` and `checkpoints`, and leaves circle.png where it is run
    for name in ("charts", "checkpoints", "manifests"):
        (folder / name).symlink_to(ROOT / name)
    with (kept / "deploy.md.log").open("w+") as log:
        done = subprocess.run(
            ["bash", str(script)],
            cwd=folder,
            env={**os.environ, **given},
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=WHOLE_PAGE_S,
        )
        log.seek(0)
        shown = log.read()
    assert done.returncode == 0, shown[-4000:]
    assert (folder / "circle.png").read_bytes().startswith(b"\x89PNG")
    assert "WARM-UP" in shown
    assert re.search(r"flux-predictor-\S+\s+ready", shown), "the warm-up annotation"
    assert re.search(r"persistentvolumeclaim|checkpoints\s+Bound", shown)
    assert not run("kubectl", "get", "namespace", namespace, "--ignore-not-found")
