"""Values files of other people's habits: each renders objects that fit the schemas of Kubernetes
1.31 to 1.35 and of KServe's CRDs, or is refused by a sentence with the key and what to say instead.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import schemas
from tests.deploy.chart import Object, of_kind, render

FOLDER = Path(__file__).parent / "values"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
PLACE = "Error: execution error at (predictors/templates/checks/values/refused.yaml:"
REFUSED = {  # file: the key, and words of the remedy
    "06-volumes": ("models.flux.env[1].name", "say settings"),
    "06b-volumes": ("models.flux.volumes", "say extraVolumes"),
    "06c-sidecars": ("models.flux.sidecars", "say extraContainers"),
    "08b-serverless": ("deploymentMode", "needs KServe's Standard mode"),
    "08c-knative-mode": ("deploymentMode", "needs KServe's Standard mode"),
    "12-amd": ("models.flux.gpu.resource", "say nvidia.com/gpu"),
    "13-hpa": ("autoscalerClass", "with class keda, hpa or external"),
    "13b-max-noscale": ("models.flux.replicas.max", "needs autoscaling.enabled"),
    "13c-external": ("autoscalerClass", "with class keda, hpa or external"),
    "14-ingress": ("ingress", "ingress.controller nginx"),
    "15-apikey": ("auth", "say apiKeys.secretName"),
    "16b-logLevel": ("models.flux.settings.server.logLevel", "did you mean log_level?"),
    "18b-serviceMonitor": ("serviceMonitor", "say podMonitor"),
    "19-gpu2": ("models.flux.gpu.count", "say 1, and replicas.min for more"),
    "20-surge-nospare": ("models.flux.rollout", "needs gpu.spare"),
    "22-name": ("models.FLUX.1-dev", "lower-case letters"),
    "23-format": ("models.q.format", "qwen-vl (Qwen2.5-VL"),
    "24-both-in-one": ("models.both.format", "one per model"),
    "25-revhist": ("revisionHistoryLimit", "KServe makes the Deployment"),
    "27-hostnet": ("models.flux.hostNetwork", "leave it out"),
}


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Object] | str]:
    """The objects of every file, or Helm's message; two at a time."""

    def one(path: Path) -> list[Object] | str:
        try:
            return render(path)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(FILES, pool.map(one, FILES.values()), strict=True))


def objects(rendered: dict[str, list[Object] | str], name: str) -> list[Object]:
    found = rendered[name]
    assert not isinstance(found, str), found
    return found


def predictor(rendered: dict[str, list[Object] | str], name: str) -> dict[str, Any]:
    spec: dict[str, Any] = of_kind(objects(rendered, name), "InferenceService")["flux"]["spec"]
    found: dict[str, Any] = spec["predictor"]
    return found


@pytest.mark.parametrize("name", FILES)
def test_each_renders_or_is_refused_by_key_and_remedy(
    rendered: dict[str, list[Object] | str], name: str
) -> None:
    found = rendered[name]
    if name not in REFUSED:
        assert isinstance(found, list), found
        return
    assert isinstance(found, str), "rendered"
    place, _, sentence = found.partition("\n\n")
    assert place.startswith(PLACE)  # Helm puts it there; the sentence has a line of its own
    key, remedy = REFUSED[name]
    (line,) = [line for line in sentence.splitlines() if key in line.split(": ")[0] + " "][:1]
    assert remedy in line


def test_what_renders_fits_the_schemas(rendered: dict[str, list[Object] | str]) -> None:
    found = {
        json.dumps(each, sort_keys=True): each
        for one in rendered.values() if isinstance(one, list) for each in one
    }  # fmt: skip
    assert len(found) > 50
    wrong = [
        f"{version} {each['kind']} {each['metadata']['name']} {said}"
        for each in found.values()
        for version in versions(each)
        for said in schemas.wrongs(each, version)
    ]
    assert wrong == []


def versions(found: Object) -> tuple[str, ...]:
    """Versions of Kubernetes whose schema of an object differs: a CRD is the same in all."""
    own = found["apiVersion"].partition("/")[0] in schemas.GROUPS
    return schemas.VERSIONS[-1:] if own else schemas.VERSIONS


def test_registry_secrets_are_taken_in_every_form(
    rendered: dict[str, list[Object] | str],
) -> None:
    for name in ("02-private-registry", "02b-pullsecrets-objects", "02c-imagePullSecrets",
                 "02d-global-imagePullSecrets"):  # fmt: skip
        assert predictor(rendered, name)["imagePullSecrets"] == [{"name": "regcred"}]
        for runtime in of_kind(objects(rendered, name), "ServingRuntime").values():
            assert runtime["spec"]["imagePullSecrets"] == [{"name": "regcred"}]
        for pod in of_kind(objects(rendered, name), "Pod").values():
            assert pod["spec"]["imagePullSecrets"] == [{"name": "regcred"}]


def test_labels_reach_objects_and_pods_and_no_selector(
    rendered: dict[str, list[Object] | str],
) -> None:
    labels = {"team": "ml", "cost-center": "42"}
    for each in objects(rendered, "09-commonLabels"):
        assert each["metadata"]["labels"].items() >= labels.items(), each["kind"]
        assert "cost-center" not in json.dumps(each["spec"].get("selector", "")) if "spec" in each \
            else True  # fmt: skip
    one = of_kind(objects(rendered, "09b-model-labels"), "InferenceService")["flux"]
    assert one["metadata"]["labels"]["team"] == "ml"


def test_downloads_name_their_address_and_their_credentials(
    rendered: dict[str, list[Object] | str],
) -> None:
    assert predictor(rendered, "03-s3")["model"]["storageUri"] == "s3://bucket/flux-dev"
    (account,) = of_kind(objects(rendered, "03-s3"), "ServiceAccount").values()
    assert account["secrets"] == [{"name": "s3creds"}]
    (account,) = of_kind(objects(rendered, "03b-gs"), "ServiceAccount").values()
    assert account["metadata"]["annotations"] == {"iam.gke.io/gcp-service-account": "x@y"}
    assert predictor(rendered, "03c-https")["model"]["storageUri"] == "https://host/flux.tar"


def test_ids_can_be_removed_from_all_pods_or_one_models_container(
    rendered: dict[str, list[Object] | str],
) -> None:
    assert "runAsUser" not in predictor(rendered, "10-openshift")["securityContext"]
    assert predictor(rendered, "10-openshift")["securityContext"]["runAsNonRoot"] is True
    for pod in of_kind(objects(rendered, "10-openshift"), "Pod").values():
        assert "runAsUser" not in pod["spec"]["securityContext"]
    runtimes = of_kind(objects(rendered, "10b-openshift"), "ServingRuntime")
    own = runtimes.pop(predictor(rendered, "10b-openshift")["model"]["runtime"])
    assert "runAsUser" not in own["spec"]["containers"][0]["securityContext"]
    assert not own["spec"]["supportedModelFormats"][0]["autoSelect"]
    for other in runtimes.values():
        assert other["spec"]["containers"][0]["securityContext"]["runAsUser"] == 10001


def test_a_models_image_and_extensions_are_its_predictors(
    rendered: dict[str, list[Object] | str],
) -> None:
    assert predictor(rendered, "17-model-image")["model"]["image"] == "vision-predictors:2"
    assert predictor(rendered, "06d-init")["initContainers"] == [{"name": "i", "image": "busybox"}]
    envs = predictor(rendered, "06e-envFrom")["model"]["envFrom"]
    assert envs == [{"secretRef": {"name": "x"}}]


def test_everything_at_once_fits_the_schemas() -> None:
    """All extension points of the other files in one, with canary, Job, prepull, test pods and
    policies."""
    found = render(Path(__file__).parent / "everything.yaml")
    wrong = [said for each in found for v in versions(each) for said in schemas.wrongs(each, v)]
    assert wrong == []
    assert {each["metadata"]["namespace"] for each in found} == {"other"}
    assert {each["metadata"]["labels"]["app.kubernetes.io/part-of"] for each in found} == {"ours"}
    flux = of_kind(found, "InferenceService")["flux"]["spec"]
    assert flux["predictor"]["model"]["image"].endswith(":2")
    assert flux["predictor"]["model"]["imagePullPolicy"] == "Always"
    assert flux["predictor"]["model"]["resources"]["claims"] == [{"name": "gpu"}]
    assert flux["canary"][0]["predictor"]["model"]["image"].endswith(":3")
    pods = [flux["predictor"], *(
        each["spec"].get("template", each)["spec"]
        for each in found if each["kind"] in ("Pod", "Job", "DaemonSet")
    )]  # fmt: skip
    assert len(pods) == 5
    assert not [pod for pod in pods if "runAsUser" in pod["securityContext"]]
    (policy,) = [p for n, p in of_kind(found, "NetworkPolicy").items() if n.endswith("-flux")]
    ports = [{port["port"] for port in rule["ports"]} for rule in policy["spec"]["egress"]]
    assert {443, 9000} in ports
    job = of_kind(found, "Job")["predictors-q-precompile"]["spec"]["template"]["spec"]
    assert {"name": "ca", "mountPath": "/ca"} in job["containers"][0]["volumeMounts"]
