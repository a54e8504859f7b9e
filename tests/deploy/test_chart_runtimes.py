"""ServingRuntimes: one per format, auto-selected, complete for an InferenceService of few lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.chart import CASES, PROFILES, Object, environment, of_kind, render, template

FORMATS = {"flux": ["1"], "qwen-vl": ["2.5", "3"]}


def runtimes(*values: str, sets: tuple[str, ...] = ()) -> dict[str, Object]:
    found = of_kind(render(*values, sets=sets), "ServingRuntime")
    return {
        each["spec"]["supportedModelFormats"][0]["name"]: each["spec"] for each in found.values()
    }


def container(spec: Object) -> Object:
    """The one container that KServe merges with an InferenceService's."""
    (only,) = spec["containers"]
    assert only["name"] == "kserve-container"
    found: Object = only
    return found


def test_both_formats_are_selected_by_name_and_version() -> None:
    for name, spec in runtimes().items():
        assert spec["supportedModelFormats"] == [
            {"name": name, "version": version, "autoSelect": True, "priority": 1}
            for version in FORMATS[name]
        ]
        assert spec["protocolVersions"] == ["v2", "grpc-v2"]
        assert spec["multiModel"] is False
    assert set(runtimes()) == set(FORMATS)


def test_selection_can_be_turned_off_and_ranked() -> None:
    sets = ("runtimes.autoSelect=false", "runtimes.priority=3")
    for spec in runtimes(sets=sets).values():
        for each in spec["supportedModelFormats"]:
            assert each["autoSelect"] is False
            assert each["priority"] == 3


def test_kserves_placeholders_survive_helm() -> None:
    for spec in runtimes().values():
        assert container(spec)["args"] == ["serve", "--model", "{{.Name}}=/mnt/models"]
        for probe in ("startupProbe", "readinessProbe"):
            assert container(spec)[probe]["httpGet"]["path"] == "/v2/models/{{.Name}}/ready"
        assert container(spec)["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def test_rest_comes_before_grpc_since_the_service_takes_the_first_port() -> None:
    for spec in runtimes().values():
        ports = [(port["name"], port["containerPort"]) for port in container(spec)["ports"]]
        assert ports[:2] == [("http1", 8080), ("h2c", 8081)]


def test_a_runtime_alone_is_restricted() -> None:
    for spec in runtimes().values():
        assert container(spec)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }


def test_what_the_server_writes_lies_in_volumes() -> None:
    sets = ('defaults.shm.size="3Gi"', 'defaults.tmp.size="7Gi"')
    for spec in runtimes(sets=sets).values():
        mounts = {mount["mountPath"]: mount["name"] for mount in container(spec)["volumeMounts"]}
        assert mounts == {"/tmp": "tmp", "/dev/shm": "shm", "/var/cache/predictors": "cache"}
        assert {volume.pop("name"): volume for volume in spec["volumes"]} == {
            "tmp": {"emptyDir": {"sizeLimit": "7Gi"}},
            "shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "3Gi"}},
            "cache": {"emptyDir": {}},
        }


def test_compiled_code_is_kept_below_the_volumes_root_which_anybody_may_write() -> None:
    for spec in runtimes().values():
        said = environment(container(spec))
        assert said["PREDICTORS_COMPUTE_CACHE_DIR"] == "/var/cache/predictors/compiled"
        assert said["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}
        assert said["POD_NAMESPACE"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}


def test_an_inferenceservice_of_few_lines_drains_within_kubernetes_own_30_seconds() -> None:
    for spec in runtimes().values():
        said = environment(container(spec))
        waits = container(spec)["lifecycle"]["preStop"]["sleep"]["seconds"]
        lingers, drains = (
            int(said[f"PREDICTORS_SERVER_{name}_S"]) for name in ("LINGER", "DRAIN_TIMEOUT")
        )
        assert min(waits, lingers, drains) > 0
        assert waits + lingers + drains + 5 <= 30


@pytest.mark.parametrize("values", [*PROFILES, *CASES], ids=lambda path: path.name)
def test_every_model_of_the_chart_repeats_the_runtimes_shutdown_settings(values: Path) -> None:
    """KServe 0.20 lays a model's container over the runtime's by a strategic merge: a variable by
    its name, a handler field by field, so that only one of the same kind replaces the runtime's."""
    for service in of_kind(render(values), "InferenceService").values():
        spec = service["spec"]
        canaries = [each["predictor"] for each in spec.get("canary", [])]
        for predictor in [spec["predictor"], *canaries]:
            said = environment(predictor["model"])
            parts = [int(said[f"PREDICTORS_SERVER_{it}_S"]) for it in ("LINGER", "DRAIN_TIMEOUT")]
            (handler,) = predictor["model"]["lifecycle"]["preStop"].items()
            assert handler[0] == "sleep"
            waits = handler[1]["seconds"]
            assert predictor["terminationGracePeriodSeconds"] == sum(parts) + waits + 15


@pytest.mark.parametrize(("linger", "expected"), [(5, 11), (20, 20), (0, 0)])
def test_a_pod_may_linger_as_long_as_older_grpc_connections(linger: int, expected: int) -> None:
    given = ("settings.server.grpc_connection_s=10", f"drain.lingerSeconds={linger}")
    model = ('format="flux"', 'storage.uri="pvc://a/b"')
    sets = tuple(f"models.flux.{each}" for each in (*given, *model))
    (service,) = of_kind(render(sets=sets), "InferenceService").values()
    predictor = service["spec"]["predictor"]
    waits = predictor["model"]["lifecycle"]["preStop"]["sleep"]["seconds"]
    said = environment(predictor["model"])
    drains = int(said["PREDICTORS_SERVER_DRAIN_TIMEOUT_S"])
    assert predictor["terminationGracePeriodSeconds"] == waits + expected + drains + 15


@pytest.mark.parametrize(
    ("repository", "registry", "expected"),
    [
        ("vision-predictors", "", "vision-predictors:9"),
        ("vision-predictors", "mirror:5000", "mirror:5000/vision-predictors:9"),
        ("team/vision-predictors", "mirror/", "mirror/team/vision-predictors:9"),
        ("ghcr.io/team/x", "mirror/all", "mirror/all/team/x:9"),
        ("localhost/x", "mirror", "mirror/x:9"),
        ("reg:5000/x", "mirror", "mirror/x:9"),
    ],
)
def test_the_global_registry_replaces_one_that_the_repository_names(
    repository: str, registry: str, expected: str
) -> None:
    sets = (
        f'image.repository="{repository}"', 'image.tag="9"', f'global.imageRegistry="{registry}"',
    )  # fmt: skip
    assert {container(spec)["image"] for spec in runtimes(sets=sets).values()} == {expected}


def test_a_digest_wins_over_the_tag_and_every_image_comes_from_the_global_registry() -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    for spec in runtimes("ci/airgap-values.yaml").values():
        assert container(spec)["image"].endswith(f"/example/vision-predictors@{digest}")
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
    lines = [line.strip() for line in template("ci/airgap-values.yaml").splitlines()]
    images = [line for line in lines if line.startswith(("image:", "- image:"))]
    assert images
    assert all("image: registry.internal:5000/mirror/" in line.replace('"', "") for line in images)


@pytest.mark.parametrize("values", [*PROFILES, *CASES], ids=lambda path: path.name)
def test_runtimes_ask_for_no_gpu_so_that_a_model_decides(values: object) -> None:
    for spec in of_kind(render(str(values)), "ServingRuntime").values():
        resources = container(spec["spec"])["resources"]
        assert not [name for side in resources.values() for name in side if "/" in name]
