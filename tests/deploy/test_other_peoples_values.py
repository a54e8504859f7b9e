"""Values files of other people's habits: each renders objects that fit the schemas of Kubernetes
1.31 to 1.35 and of KServe's CRDs, or is refused by a sentence with the key and what to say instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import schemas
from tests.deploy.chart import Object, of_kind, render

FOLDER = Path(__file__).parent / "values"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
PLACE = "Error: execution error at (predictors/templates/checks/values/refused.yaml:"
REFUSED: dict[str, dict[str, str]] = yaml.safe_load((FOLDER.parent / "refused.yaml").read_text())
ELSEWHERE = {  # what has another name in the objects: the end of its path
    "autoscaling.class",  # an object of that kind, and KServe's annotation
}
WARNED = {"14c-gateway-nocanary": "gateway.parentRefs"}  # has no effect, as the notes say


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
    place, _, sentences = found.partition("\n\n")
    assert PLACE in place  # Helm puts it there; each sentence has a line of its own
    lines = sentences.split("\n\n")[0].splitlines()
    assert len(lines) == len(REFUSED[name]), lines
    for line, (key, remedy) in zip(lines, REFUSED[name].items(), strict=True):
        assert line.startswith(key)
        assert remedy in line.removeprefix(key)


def test_the_table_of_refusals_names_files_alone() -> None:
    assert set(REFUSED) <= set(FILES)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of a values file, by its path."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, f"{path}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for each in value:
            yield from leaves(each, path)
    else:
        yield path, value


@pytest.mark.parametrize("name", [name for name in FILES if name not in REFUSED])
def test_nothing_that_is_accepted_is_missing_from_the_objects(
    rendered: dict[str, list[Object] | str], name: str
) -> None:
    """Every text and number of the file is somewhere in what it renders; switches, nulls, models
    that are off, globals of other charts and templates have tests of their own."""
    said = yaml.safe_load(FILES[name].read_text())
    for model, values in dict(said.get("models") or {}).items():
        if values and not values.get("enabled", True):
            del said["models"][model]
    said = {key: value for key, value in said.items() if key not in ("global", "extraObjects")}
    text = json.dumps(objects(rendered, name), ensure_ascii=False)
    scalars = {str(value) for _, value in leaves(json.loads(text))}
    missing = [
        path for path, value in leaves(said)
        if value not in (None, "") and not isinstance(value, bool) and "{{" not in str(value)
        and str(value) not in scalars and not path.endswith(tuple(ELSEWHERE))
        and not (len(str(value)) > 2 and json.dumps(str(value))[1:-1] in text)
        and not path.startswith(WARNED.get(name, "-"))
    ]  # fmt: skip
    assert missing == []


def shape(value: Any) -> Any:
    """A value without its texts: versions of Kubernetes differ in keys and kinds of values."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return type(value).__name__


def test_what_renders_fits_the_schemas(rendered: dict[str, list[Object] | str]) -> None:
    """Every object in the newest version, one of each shape in the others."""
    listed = [each for one in rendered.values() if isinstance(one, list) for each in one]
    found = {json.dumps(each, sort_keys=True): each for each in listed}
    shapes = {each["kind"] + json.dumps(shape(each), sort_keys=True): each for each in listed}
    assert len(found) > len(shapes) > 50
    pairs = [(each, version) for each in found.values() for version in versions(each)[-1:]]
    pairs += [(each, version) for each in shapes.values() for version in versions(each)[:-1]]
    wrong = [
        f"{version} {each['kind']} {each['metadata']['name']} {said}"
        for each, version in pairs for said in schemas.wrongs(each, version)
    ]  # fmt: skip
    assert wrong == []


def versions(found: Object) -> tuple[str, ...]:
    """Versions of Kubernetes whose schema of an object differs: a CRD is the same in all, of an
    operator that is not this repository's there is no schema, and claims of devices are younger."""
    group = found["apiVersion"].partition("/")[0]
    if group in ("route.openshift.io", "external-secrets.io"):
        return ()
    if group == "resource.k8s.io":
        return schemas.VERSIONS[-2:]
    return schemas.VERSIONS[-1:] if group in schemas.GROUPS else schemas.VERSIONS


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


def test_templates_that_speak_of_the_release_are_filled_in_and_those_of_others_are_not(
    rendered: dict[str, list[Object] | str],
) -> None:
    found = objects(rendered, "68-tpl")
    flux = predictor(rendered, "68-tpl")
    assert flux["annotations"] == {"checksum/config": "1", "release": "predictors"}
    assert flux["model"]["storageUri"] == "pvc://predictors-ckpt/dev"
    assert flux["model"]["envFrom"] == [{"configMapRef": {"name": "predictors-extra"}}]
    assert {"name": "DEPLOYED_BY", "value": "Helm/predictors"} in flux["model"]["env"]
    assert {each["metadata"]["labels"]["cluster"] for each in found} == {"prod-eu"}
    vault = predictor(rendered, "69-vault")["annotations"]
    assert "{{ .Data.data.token }}" in vault["vault.hashicorp.com/agent-inject-template-hf"]


def test_null_empties_and_a_limit_that_is_removed_is_not_the_runtimes_either(
    rendered: dict[str, list[Object] | str],
) -> None:
    flux = predictor(rendered, "57-nulls")
    assert flux["model"]["resources"] == {"requests": {"memory": "2Gi"}}
    assert not {"topologySpreadConstraints", "annotations", "dnsConfig"} & set(flux)
    flux = predictor(rendered, "63-limits-only")
    assert set(flux["model"]["resources"]) == {"limits"}
    own = of_kind(objects(rendered, "63-limits-only"), "ServingRuntime")[flux["model"]["runtime"]]
    assert "requests" not in own["spec"]["containers"][0]["resources"]
    assert not own["spec"]["supportedModelFormats"][0]["autoSelect"]


def test_quantities_are_strings_however_they_are_written(
    rendered: dict[str, list[Object] | str],
) -> None:
    """A CRD takes no 2.5, which Kubernetes' own kinds take."""
    resources = predictor(rendered, "62c-resources-odd")["model"]["resources"]
    assert resources["limits"] == {"cpu": "2.5", "memory": "16000000000", "hugepages-2Mi": "1Gi"}
    assert resources["requests"]["ephemeral-storage"] == "1000000000"


def test_pods_with_a_claimed_card_are_placed_like_those_with_a_counted_one(
    rendered: dict[str, list[Object] | str],
) -> None:
    flux = predictor(rendered, "51b-dra-gpu-keys")
    assert flux["runtimeClassName"] == "nvidia"
    assert flux["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100"}
    assert len(predictor(rendered, "51-dra")["tolerations"]) == 1  # the chart's is the same


def test_pods_that_are_no_servers_have_labels_and_annotations_of_their_own(
    rendered: dict[str, list[Object] | str],
) -> None:
    """A mesh's sidecar would keep a Job and a test pod from ending."""
    found = objects(rendered, "98-mesh-pods")
    for pod in of_kind(found, "Pod").values():
        assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
        assert pod["metadata"]["annotations"]["linkerd.io/inject"] == "disabled"
        assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    for kind, label in (("Job", "no"), ("DaemonSet", "false")):
        for each in of_kind(found, kind).values():
            about = each["spec"]["template"]["metadata"]
            assert about["labels"]["sidecar.istio.io/inject"] == label
            assert about["annotations"]
    (activator,) = of_kind(found, "Deployment").values()
    assert activator["spec"]["template"]["metadata"]["labels"]["version"] == "v1"
    for server in of_kind(found, "InferenceService").values():
        assert "sidecar.istio.io/inject" not in server["metadata"]["labels"]


def test_a_claim_that_is_made_has_the_class_of_global(
    rendered: dict[str, list[Object] | str],
) -> None:
    (claim,) = of_kind(objects(rendered, "35-bitnami-global"), "PersistentVolumeClaim").values()
    assert claim["spec"]["storageClassName"] == "gp3"
