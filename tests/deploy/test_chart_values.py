"""Values: every profile and case is accepted, and what is written from them is current."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from predictors.environment import from_env
from predictors.settings import Settings
from tests.deploy.chart import (
    CASES,
    CHART,
    KUBERNETES,
    PROFILES,
    environment,
    helm,
    of_kind,
    render,
    template,
)

ROOT = CHART.parents[1]
FILES = [*PROFILES, *CASES]
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
SECTIONS = SCHEMA["definitions"]["settings"]["properties"]


NAMED = (
    "nameOverride", "namespaceOverride", "global.storageClass", "apiKeys.secretName",
    "tls.secretName", "c2pa.secretName", "dashboard.namespace", "prepull.priorityClassName",
    "models.flux.storage.secretName", "models.flux.storage.containerName",
    "models.flux.priorityClassName", "models.flux.serviceAccount.name", "models.q.cache.claim",
    "models.q.serviceAccount.name",
)  # fmt: skip
"""Values that are names in the cluster."""


@pytest.mark.parametrize("name", ["12345", "on"])
def test_a_name_that_yaml_takes_for_a_number_or_a_truth_value_stays_a_text(name: str) -> None:
    def others(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                yield from others(each)
        elif value == yaml.safe_load(name) and type(value) is type(yaml.safe_load(name)):
            yield value

    file = Path(__file__).parent / "everything.yaml"
    plain, named = (
        render(file, sets=tuple(f'{each}="{text}"' for each in NAMED)) for text in ("usual", name)
    )
    assert len(list(others(named))) == len(list(others(plain)))
    assert {each["metadata"].get("namespace", name) for each in named} == {name}


@pytest.mark.parametrize("values", FILES, ids=lambda path: path.name)
def test_helm_lints_every_profile_and_case_strictly(values: Path) -> None:
    done = helm(
        "lint", "--strict", str(CHART), "--kube-version", KUBERNETES, "-f", str(values)
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_a_profile_and_a_case_for_what_the_chart_promises() -> None:
    assert {path.name for path in PROFILES} == {
        "values-laptop.yaml", "values-one-gpu.yaml", "values-production.yaml",
    }  # fmt: skip
    assert {path.name.removesuffix("-values.yaml") for path in CASES} >= {
        "gpu-keda", "hf", "oci", "canary", "airgap", "precompile", "scale-to-zero",
    }  # fmt: skip


def test_the_schema_knows_every_setting_of_a_server_and_no_other() -> None:
    knobs = {
        section.name: {knob.name for knob in fields(getattr(Settings(), section.name))}
        for section in fields(Settings)
        if section.name != "activator"  # another process, with values of its own
    }
    assert {name: set(section["properties"]) for name, section in SECTIONS.items()} == knobs


@pytest.mark.parametrize("values", FILES, ids=lambda path: path.name)
def test_the_server_understands_every_variable_that_the_chart_sets(values: Path) -> None:
    objects = render(values)
    for service in of_kind(objects, "InferenceService").values():
        predictor = service["spec"]["predictor"]
        runtime = of_kind(objects, "ServingRuntime")[predictor["model"]["runtime"]]
        said = environment(runtime["spec"]["containers"][0]) | environment(predictor["model"])
        read = {name: value for name, value in said.items() if isinstance(value, str)}
        assert from_env(read).server.host == "0.0.0.0"


def test_every_kind_of_number_reaches_the_server_as_it_was_written() -> None:
    flux = of_kind(render("ci/gpu-keda-values.yaml"), "InferenceService")["flux"]
    said = environment(flux["spec"]["predictor"]["model"])
    settings = from_env({name: value for name, value in said.items() if isinstance(value, str)})
    assert said["PREDICTORS_IMAGES_MAX_BYTES"] == "67108864"  # not 6.7108864e+07
    assert settings.flux.age_limit_s == 12.5
    assert settings.flux.fp8_attention is False
    assert settings.flux.sizes == "1024x1024,768x1344"


def test_no_models_leaves_the_runtimes_alone() -> None:
    kinds = {each["kind"] for each in render() if "helm.sh/hook" not in str(each["metadata"])}
    assert "ServingRuntime" in kinds
    assert not kinds & {"InferenceService", "ServiceAccount", "Role", "RoleBinding", "Job"}


def test_a_model_that_is_switched_off_leaves_nothing() -> None:
    assert "sketches" not in template("ci/oci-values.yaml")


def test_defaults_reach_every_model_and_a_model_wins_over_them() -> None:
    sets = (
        "defaults.settings.queue.capacity=5",
        "models.flux.settings.queue.capacity=9",
        "defaults.cache.keep=true",
        "defaults.cache.enabled=true",
        "models.flux.cache.keep=false",
        'models.qwen-vl.resources={"limits":{"memory":null}}',
    )
    objects = render("values-laptop.yaml", sets=sets)
    services = of_kind(objects, "InferenceService")
    models = {name: each["spec"]["predictor"]["model"] for name, each in services.items()}
    capacity = {
        name: environment(each)["PREDICTORS_QUEUE_CAPACITY"] for name, each in models.items()
    }
    assert capacity == {"flux": "9", "qwen-vl": "5"}
    resources = models["qwen-vl"]["resources"]
    assert resources == {"requests": {"cpu": "250m", "memory": "768Mi"}}
    claims = of_kind(objects, "PersistentVolumeClaim")
    assert "annotations" not in claims["predictors-flux-cache"]["metadata"]
    assert claims["predictors-qwen-vl-cache"]["metadata"]["annotations"] == {
        "helm.sh/resource-policy": "keep"
    }


@pytest.mark.parametrize("values", FILES, ids=lambda path: path.name)
def test_two_releases_of_different_name_share_no_object(values: Path) -> None:
    def names(release: str) -> set[tuple[str, str]]:
        found = {(o["kind"], o["metadata"]["name"]) for o in render(values, release=release)}
        return {(kind, name) for kind, name in found if kind != "InferenceService"}

    # a given account, and the Service of a model in another's pods, named as KServe names it
    given = {("ServiceAccount", "puller"), ("Service", "qwen-vl-predictor")}
    assert not names("one") & names("two") - given


def known(schema: dict[str, Any], path: str = "") -> set[str]:
    """Dotted keys that the schema lets be said, as far down as it lists them."""
    while "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rsplit("/", 1)[-1]]
    inner = schema.get("properties", {})
    if not inner:
        return {path}
    return {key for name in inner for key in known(inner[name], f"{path}.{name}".lstrip("."))}


def test_the_manual_says_every_key_that_the_schema_knows() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    by_model = {"defaults.format", "defaults.formatVersion"}  # by default they would be traps
    # Kubernetes' keys; and Helm drops a null where the chart has an empty map
    keys = {key for key in known(SCHEMA) - by_model if "ecurityContext" not in key}
    for key in keys:
        inner = values
        for part in key.split("."):
            if inner == {}:  # stands for whatever is within, as its comment says
                break
            assert part in inner, f"{key} is not in values.yaml"
            inner = inner[part]


def test_production_lets_the_prometheus_scrape_that_keda_asks() -> None:
    objects = render("values-production.yaml")
    for name, each in of_kind(objects, "InferenceService").items():
        metrics = each["spec"]["predictor"]["autoScaling"]["metrics"]
        asked = metrics[0]["external"]["metric"]["serverAddress"]
        rules = of_kind(objects, "NetworkPolicy")[f"predictors-{name}"]["spec"]["ingress"]
        namespaces = [
            peer.get("namespaceSelector", {}).get("matchLabels", {}) for peer in rules[-1]["from"]
        ]
        assert {"kubernetes.io/metadata.name": "monitoring"} in namespaces
        assert ".monitoring.svc" in asked
