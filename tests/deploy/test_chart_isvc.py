"""InferenceServices: Standard mode, probes, drain, rollout, placement, storage, security."""

from __future__ import annotations

from pathlib import Path

import pytest

from predictors.settings import Settings
from tests.deploy.chart import CASES, NAMESPACE, PROFILES, Object, environment, of_kind, render

FILES = [*PROFILES, *CASES]


def service(name: str, *values: str | Path, sets: tuple[str, ...] = ()) -> Object:
    return of_kind(render(*values, sets=sets), "InferenceService")[name]


def predictor(name: str, *values: str | Path, sets: tuple[str, ...] = ()) -> Object:
    found: Object = service(name, *values, sets=sets)["spec"]["predictor"]
    return found


def laptop(*sets: str) -> Object:
    """The picture model of the laptop profile, with a change."""
    return predictor("flux", "values-laptop.yaml", sets=sets)


@pytest.mark.parametrize("values", FILES, ids=lambda path: path.name)
def test_the_mode_is_said_and_no_autoscaler_comes_unasked(values: Path) -> None:
    for each in of_kind(render(values), "InferenceService").values():
        said = each["metadata"]["annotations"]
        scales = "autoScaling" in each["spec"]["predictor"]
        assert said["serving.kserve.io/deploymentMode"] == "Standard"
        own = values.name == "hpa-values.yaml"
        alone = "external" if own else "none"
        assert said["serving.kserve.io/autoscalerClass"] == ("keda" if scales else alone)


@pytest.mark.parametrize("values", FILES, ids=lambda path: path.name)
def test_labels_that_change_with_a_version_stay_off_pods(values: Path) -> None:
    for each in of_kind(render(values), "InferenceService").values():
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(each["metadata"]["labels"])


@pytest.mark.parametrize("values", FILES, ids=lambda path: path.name)
def test_every_model_names_a_runtime_of_this_release_and_its_protocol(values: Path) -> None:
    objects = render(values)
    runtimes = of_kind(objects, "ServingRuntime")
    for each in of_kind(objects, "InferenceService").values():
        model = each["spec"]["predictor"]["model"]
        offered = runtimes[model["runtime"]]["spec"]["supportedModelFormats"]
        assert {**model["modelFormat"], "autoSelect": True, "priority": 1} in offered
        assert model["protocolVersion"] == "v2"
        own = {"args"} if values.name == "colocated-values.yaml" else set()  # the other model's
        assert not {"name", "args", "command", "securityContext"} & set(model) - own
        assert "PYTHONPATH" not in environment(model)


def test_a_model_names_the_first_version_of_its_format_unless_it_says_another() -> None:
    said = 'models.qwen-vl.formatVersion="3"'
    for sets, version in (((), "2.5"), ((said,), "3")):
        model = predictor("qwen-vl", "values-laptop.yaml", sets=sets)["model"]
        assert model["modelFormat"] == {"name": "qwen-vl", "version": version}
        assert model["runtime"] == "predictors-qwen-vl"


@pytest.mark.parametrize("values", FILES, ids=lambda path: path.name)
def test_pods_are_restricted(values: Path) -> None:
    for each in of_kind(render(values), "InferenceService").values():
        security = each["spec"]["predictor"]["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_the_start_has_its_budget_and_the_other_probes_their_patience() -> None:
    probes = (
        'models.flux.probes.startup={"budgetSeconds":100,"periodSeconds":7,"timeoutSeconds":3}',
        "models.flux.probes.readiness.failureThreshold=4",
        "models.flux.probes.liveness.periodSeconds=20",
    )
    model = laptop(*probes)["model"]
    assert model["startupProbe"]["failureThreshold"] == 15  # 15 x 7 s is the first over 100 s
    assert model["startupProbe"]["periodSeconds"] == 7
    assert model["startupProbe"]["timeoutSeconds"] == 3
    assert model["readinessProbe"]["failureThreshold"] == 4
    assert model["livenessProbe"]["periodSeconds"] == 20
    for name in ("startupProbe", "readinessProbe"):
        assert model[name]["httpGet"] == {"path": "/v2/models/{{.Name}}/ready", "port": 8082}


def test_the_pod_has_time_for_the_sleep_the_linger_the_drain_and_some_slack() -> None:
    spec = laptop(
        "models.flux.timeoutSeconds=120",
        'models.flux.drain={"preStopSeconds":7,"lingerSeconds":9,"graceSeconds":140}',
    )
    assert spec["model"]["lifecycle"] == {"preStop": {"sleep": {"seconds": 7}}}
    assert spec["terminationGracePeriodSeconds"] == 7 + 9 + 140 + 15
    assert environment(spec["model"])["PREDICTORS_SERVER_LINGER_S"] == "9"
    assert environment(spec["model"])["PREDICTORS_SERVER_DRAIN_TIMEOUT_S"] == "140"
    assert spec["model"]["livenessProbe"]["terminationGracePeriodSeconds"] == 15


def test_the_longest_job_is_the_gateways_timeout_and_the_default_deadline() -> None:
    spec = laptop("models.flux.timeoutSeconds=42")
    assert spec["timeout"] == 42
    assert environment(spec["model"])["PREDICTORS_QUEUE_DEFAULT_TIMEOUT_S"] == "42"
    shorter = laptop("models.flux.settings.queue.default_timeout_s=30")
    assert environment(shorter["model"])["PREDICTORS_QUEUE_DEFAULT_TIMEOUT_S"] == "30"


def test_a_rollout_in_place_frees_the_gpu_first_and_a_surge_leaves_no_gap() -> None:
    def strategy(rollout: str) -> Object:
        found: Object = laptop(f'models.flux.rollout="{rollout}"')["deploymentStrategy"]
        return found

    assert strategy("in-place")["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert strategy("surge")["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_a_gpu_is_asked_for_with_its_nodes_tolerations_and_runtime_class() -> None:
    spec = predictor("flux", "ci/gpu-keda-values.yaml")
    for side in ("requests", "limits"):
        assert spec["model"]["resources"][side]["nvidia.com/gpu"] == "1"
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["nodeSelector"] == {
        "pool": "serving", "nvidia.com/gpu.product": "NVIDIA-H200",
    }  # fmt: skip
    assert [each["key"] for each in spec["tolerations"]] == ["dedicated", "nvidia.com/gpu"]
    assert spec["priorityClassName"] == "serving"
    assert spec["labels"] == {"team": "pictures"}
    assert spec["annotations"] == {"example.com/team": "pictures"}


def test_another_gpu_resource_takes_the_place_of_the_first() -> None:
    sets = ('defaults.gpu.resource="nvidia.com/mig-3g.40gb"',)
    limits = predictor("flux", "ci/gpu-keda-values.yaml", sets=sets)["model"]["resources"]["limits"]
    assert [name for name in limits if "/" in name] == ["nvidia.com/mig-3g.40gb"]


def test_without_a_gpu_nothing_speaks_of_one() -> None:
    spec = laptop('defaults.gpu.runtimeClassName="nvidia"')
    assert not {"runtimeClassName", "nodeSelector", "tolerations"} & set(spec)
    assert not [key for side in spec["model"]["resources"].values() for key in side if "/" in key]


def test_replicas_spread_over_nodes_by_the_label_that_kserve_sets() -> None:
    (spread,) = laptop()["topologySpreadConstraints"]
    assert spread["labelSelector"] == {
        "matchLabels": {"serving.kserve.io/inferenceservice": "flux"}
    }
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    zones = predictor("flux", "values-production.yaml")["topologySpreadConstraints"]
    assert [each["topologyKey"] for each in zones] == [
        "kubernetes.io/hostname", "topology.kubernetes.io/zone",
    ]  # fmt: skip


@pytest.mark.parametrize("claim", ["", "mine"])
def test_a_cache_claim_takes_the_runtimes_folder_under_another_volume_name(claim: str) -> None:
    sets = ("models.flux.cache.enabled=true", f'models.flux.cache.claim="{claim}"')
    spec = laptop(*sets)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes["compiled"]["persistentVolumeClaim"] == {
        "claimName": claim or "predictors-flux-cache"
    }
    assert "cache" not in volumes  # KServe would merge both into one volume of two kinds
    assert spec["model"]["volumeMounts"] == [
        {"name": "compiled", "mountPath": "/var/cache/predictors"}
    ]


def test_servers_may_only_read_a_cache_that_a_job_fills() -> None:
    spec = predictor("flux", "ci/precompile-values.yaml")
    assert spec["model"]["volumeMounts"][0]["readOnly"] is True
    compiled = next(each for each in spec["volumes"] if each["name"] == "compiled")
    assert compiled["persistentVolumeClaim"] == {"claimName": "compiled", "readOnly": True}


def test_storage_is_given_as_it_was_said() -> None:
    flux = predictor("flux", "ci/hf-values.yaml")
    assert flux["model"]["storageUri"] == "hf://black-forest-labs/FLUX.1-dev:main"
    assert flux["storageContainerName"] == "diffusers-only"
    captions = predictor("captions", "ci/oci-values.yaml")
    assert captions["model"]["storageUri"] == "oci://registry.example.com/models/qwen2.5-vl-3b:1"
    pictures = predictor("pictures", "ci/oci-values.yaml")
    assert pictures["model"]["storageUri"] == "oci+native://registry.example.com/models/flux-dev:1"
    assert pictures["imagePullSecrets"] == [{"name": "registry"}]


def test_the_token_is_mounted_only_for_events() -> None:
    assert laptop()["automountServiceAccountToken"] is True
    assert laptop("events.enabled=false")["automountServiceAccountToken"] is False


def test_replicas_are_fixed_without_autoscaling() -> None:
    spec = laptop("models.flux.replicas.min=3")
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 3)
    assert "autoScaling" not in spec


def test_load_per_replica_scales_through_keda() -> None:
    spec = predictor("flux", "ci/gpu-keda-values.yaml")
    assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 3)
    (trigger,) = spec["autoScaling"]["metrics"]
    at = f'{{namespace="{NAMESPACE}",model="flux"}}'
    assert trigger["type"] == "External"
    assert trigger["external"]["metric"] == {
        "backend": "prometheus",
        "serverAddress": "http://prometheus-operated.monitoring.svc:9090",
        "query": f"sum(predictors_requests_waiting{at}) + sum(predictors_requests_running{at})",
    }
    assert trigger["external"]["target"] == {"type": "Value", "value": "2.5"}
    assert trigger["external"]["authenticationRef"] == {
        "authenticationRef": {"name": "prometheus"}, "authModes": "bearer",
    }  # fmt: skip


def test_zero_replicas_are_woken_by_a_query_of_their_own() -> None:
    spec = predictor("flux", "ci/scale-to-zero-values.yaml")
    assert (spec["minReplicas"], spec["maxReplicas"]) == (0, 2)
    load, wake = spec["autoScaling"]["metrics"]
    assert "predictors_requests_waiting" in load["external"]["metric"]["query"]
    asked = wake["external"]["metric"]["query"]
    assert asked == f'sum(rate(envoy_http_rq_total{{route=~"{NAMESPACE}/flux.*"}}[2m]))'
    assert wake["external"]["target"]["value"] == "1000000"  # wakes, and never counts replicas
    behaviour = spec["autoScaling"]["behavior"]
    assert behaviour["scaleDown"] == {"stabilizationWindowSeconds": 60}
    assert behaviour["scaleUp"] == {"stabilizationWindowSeconds": 0}


def test_a_query_of_ones_own_replaces_the_load() -> None:
    sets = ('models.flux.autoscaling.query="sum(x{m=\\"{{ .Name }}\\"})"',)
    (trigger,) = predictor("flux", "ci/gpu-keda-values.yaml", sets=sets)["autoScaling"]["metrics"]
    assert trigger["external"]["metric"]["query"] == 'sum(x{m="flux"})'


def test_canaries_are_whole_predictors_that_differ_where_they_say_so() -> None:
    spec = service("flux", "ci/canary-values.yaml")["spec"]
    stable = spec["predictor"]
    following, tuned = spec["canary"]
    assert (following["trafficPercent"], tuned["trafficPercent"]) == (20, 5)
    assert (following["predictor"]["name"], tuned["predictor"]["name"]) == ("next", "tuned")
    assert following["predictor"]["model"].pop("image") == "vision-predictors:0.2.0"
    own = {"name", "minReplicas", "model"}
    for canary in (following["predictor"], tuned["predictor"]):
        assert not {"maxReplicas", "autoScaling", "scaleTarget"} & set(canary)  # KServe refuses
        assert {key: value for key, value in canary.items() if key not in own} == {
            key: value for key, value in stable.items() if key not in own | {"maxReplicas"}
        }
    assert following["predictor"]["model"] == stable["model"]
    assert "minReplicas" not in following["predictor"]  # KServe takes the percentage of the pods
    assert tuned["predictor"]["minReplicas"] == 1
    assert tuned["predictor"]["model"]["storageUri"] == "pvc://checkpoints/flux-tuned"
    assert environment(tuned["predictor"]["model"])["PREDICTORS_FLUX_SLOTS"] == "2"
    assert environment(stable["model"])["PREDICTORS_FLUX_SLOTS"] == "4"


def test_variables_are_added_as_kubernetes_writes_them() -> None:
    env = '[{"name":"OTEL_SERVICE_NAME","value":"p"},{"name":"K","valueFrom":{"x":{"y":"z"}}}]'
    said = environment(laptop(f"models.flux.env={env}")["model"])
    assert said["OTEL_SERVICE_NAME"] == "p"
    assert said["K"] == {"x": {"y": "z"}}


def test_an_ingress_of_nginx_waits_as_long_and_takes_as_much_as_the_server() -> None:
    nginx = "nginx.ingress.kubernetes.io/proxy"
    sets = ('models.flux.ingress.controller="nginx"', 'models.flux.annotations={"a/b":"c"}')
    said = service("flux", "values-laptop.yaml", sets=sets)["metadata"]["annotations"]
    assert said[f"{nginx}-read-timeout"] == said[f"{nginx}-send-timeout"] == "60"
    assert said[f"{nginx}-body-size"] == str(Settings().server.max_body_bytes)
    assert said[f"{nginx}-buffering"] == "off"
    assert said["a/b"] == "c"
    less = (*sets, "models.flux.settings.server.max_body_bytes=1048576")
    said = service("flux", "values-laptop.yaml", sets=less)["metadata"]["annotations"]
    assert said[f"{nginx}-body-size"] == "1048576"
    assert "nginx" not in str(service("flux", "values-laptop.yaml"))
