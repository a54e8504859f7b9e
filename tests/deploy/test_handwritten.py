"""InferenceServices that people write by hand for the release's runtimes: the one of docs/deploy.md
fits KServe's CRD, and what the page says of fields that people copy holds for runtime and server.
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from predictors.environment import from_env
from tests.deploy import schemas
from tests.deploy.chart import of_kind, render
from tests.deploy.dockerfile import ROOT

PAGE = (ROOT / "docs/deploy.md").read_text()
SECTION = PAGE.partition("What people copy from KServe's pages")[2].partition("\n## ")[0]
(SHOWN,) = [
    yaml.safe_load(text) for text in re.findall(r"<<END\n(.*?)^END$", PAGE, re.M | re.S)
    if "name: mine\n" in text
]  # fmt: skip


@pytest.fixture(scope="module")
def runtime() -> dict[str, Any]:
    """The spec of the release's runtime for FLUX, of a release without models."""
    found = of_kind(render(), "ServingRuntime")["predictors-flux"]["spec"]
    return dict(found)


def test_the_one_of_the_page_fits_the_crd_and_finds_the_runtime(runtime: dict[str, Any]) -> None:
    assert list(schemas.wrongs(SHOWN, schemas.VERSIONS[-1])) == []
    model = SHOWN["spec"]["predictor"]["model"]
    assert model["modelFormat"] in [
        {"name": each["name"], "version": each["version"]}
        for each in runtime["supportedModelFormats"] if each["autoSelect"]
    ]  # fmt: skip
    assert model["protocolVersion"] in runtime["protocolVersions"]
    assert "v1" not in runtime["protocolVersions"]  # KServe's default, as the page says


@pytest.mark.parametrize(
    "field",
    ["minReplicas", "maxReplicas", "canaryTrafficPercent", "containerConcurrency", "batcher",
     "logger", "serviceAccountName", "tolerations", "model.modelFormat", "model.protocolVersion",
     "model.storageUri", "model.args", "model.resources", "model.runtimeVersion", "model.env"],
)  # fmt: skip
def test_every_field_that_the_page_judges_is_one_of_kserves(field: str) -> None:
    value: dict[str, Any] = {
        "batcher": {}, "logger": {"mode": "all"}, "serviceAccountName": "a", "tolerations": [],
        "modelFormat": {"name": "flux"}, "protocolVersion": "v2", "storageUri": "pvc://a",
        "args": [], "resources": {}, "runtimeVersion": "1", "env": [],
    }  # fmt: skip
    *above, name = field.split(".")
    assert re.search(rf"`(predictor\.)?{name}", SECTION)
    one = {name: value.get(name, 1)}
    predictor = {"model": {"modelFormat": {"name": "flux"}} | one} if above else one
    asked = SHOWN | {"spec": {"predictor": predictor}}
    assert list(schemas.wrongs(asked, schemas.VERSIONS[-1])) == []


def test_flags_of_kserves_own_server_end_the_process_with_the_words_of_the_page() -> None:
    flags = re.findall(r"`(--\w+)`", SECTION)
    assert flags
    done = subprocess.run(
        [sys.executable, "-m", "predictors", "serve", "--model", "x=/mnt/models",
         *(f"{flag}=1" for flag in flags)],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unrecognized arguments: " + " ".join(f"{flag}=1" for flag in flags) in done.stderr
    assert "`unrecognized arguments`" in SECTION


def test_knative_allows_one_port_and_the_runtime_has_more(runtime: dict[str, Any]) -> None:
    assert len(runtime["containers"][0]["ports"]) == 4
    assert "the runtime has four" in SECTION


def test_the_limit_that_stays_is_the_one_of_the_page(runtime: dict[str, Any]) -> None:
    limits = runtime["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "4Gi"}
    assert "4Gi by default" in SECTION


def test_variables_of_the_page_are_settings() -> None:
    names = set(re.findall(r"PREDICTORS_\w+", SECTION))
    from_env({"PREDICTORS_QWEN_VL_MAX_CONTEXT": "4096"})  # one that it does not know is an error
    assert names == {"PREDICTORS_QWEN_VL_MAX_CONTEXT"}
