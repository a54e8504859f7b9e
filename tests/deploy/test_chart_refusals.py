"""Values that can't be used are refused before anything is applied, by a message with the key."""

from __future__ import annotations

import pytest

from tests.deploy.chart import CHART, helm, of_kind, refusal, render

LAPTOP = "values-laptop.yaml"
ZERO = "models.flux.replicas.min=0"
GPU = "models.flux.gpu.count=1"
URL = 'models.flux.settings.server.public_url="https://pictures.example.com"'
CANARY = '"name":"a","trafficPercent":'

BY_SCHEMA = [
    ("model.flux=1", "model: say models, a map by name"),
    ("models.flux.replicaz=1", "flux.replicaz: there is no such key; did you mean replicas?"),
    ("defaults.cash.enabled=true", "defaults.cash: there is no such key; `helm show values`"),
    ('models.flux.replicas.min="two"', 'models.flux.replicas.min is "two": an integer is needed'),
    ("models.flux.replicas=2", "models.flux.replicas is 2: a map is needed: {min: 1, max: 0}"),
    ("models.flux.settings.queue.capazity=1", "queue.capazity: there is no such key; did"
     " you mean capacity?"),
    ("models.flux.settings.cue.capacity=1", "models.flux.settings.cue: there is no such key"),
    ("models.flux.slots=4", "is a setting: say settings.flux.slots or settings.qwen_vl.slots"),
    ("models.flux.apiKeys={}", "flux.apiKeys is not a model's: say apiKeys at the top level"),
    ("sidecars=1", "sidecars belongs to a model, or to defaults: say extraContainers"),
    ("resources.limits.cpu=1", "resources belongs to a model: say defaults.resources for all"),
    ('models.flux.settings.queue.capacity="many"', 'capacity is "many": an integer is needed'),
    ("models.flux.settings.flux.slots=0", "models.flux.settings.flux.slots is 0: at least 1"),
    ('models.flux.settings.compute.compile="fast"', 'compute.compile is "fast": there are "auto",'),
    ('models.flux.format="llava"', 'models.flux.format is "llava": there are flux (FLUX.1)'),
    ("models.qwen-vl.formatVersion=2.5", "formatVersion is 2.5: a string is needed: quote it"),
    ("models.flux.nodeSelector.a=true", "nodeSelector.a is true: a string is needed: quote it"),
    ('models.Flux.format="flux"', "models.Flux: the name is the InferenceService's"),
    ('models.flux.rollout="recreate"', 'models.flux.rollout is "recreate": there are "in-place"'),
    ("models.flux.gpu.count=2", "models.flux.gpu.count is 2: one process drives one GPU: say 1"),
    ('models.flux.gpu.resource="gpu"', 'models.flux.gpu.resource is "gpu": VENDOR/NAME'),
    ("models.flux.drain.preStopSeconds=0", "models.flux.drain.preStopSeconds is 0: at least 1"),
    ('models.flux.shm.size="big"', 'models.flux.shm.size is "big": a quantity'),
    ('models.flux.resources.limits.memory="1 GB"', 'limits.memory is "1 GB": a quantity'),
    ("models.flux.resources.limit={}", "limit: there is no such key; did you mean limits?"),
    (f"models.flux.canary=[{{{CANARY}101}}]", "canary[0].trafficPercent is 101: at most 100"),
    (f"models.flux.canary=[{{{CANARY}-1}}]", "canary[0].trafficPercent is -1: at least 0"),
    ('models.flux.canary=[{"name":"a"}]', "models.flux.canary[0].trafficPercent is needed"),
    (f'models.flux.canary=[{{{CANARY}5,"autoscaling":{{}}}}]', "canary[0].autoscaling: there is"),
    ('models.flux.env=[{"name":"PYTHONPATH","value":"/x"}]', "PYTHONPATH is refused by KServe"),
    ('models.flux.env=[{"name":"PREDICTORS_FLUX_SLOTS","value":"1"}]', "env[0].name is"
     ' "PREDICTORS_FLUX_SLOTS": a setting of the server, which has a key of its own: say settings'),
    ('image.digest="sha256:abc"', 'image.digest is "sha256:abc": sha256: and 64 hex digits'),
    ('image.pullPolicy="Sometimes"', 'image.pullPolicy is "Sometimes": there are "IfNotPresent"'),
    ('image.repository="https://registry/x"', "the address without scheme, tag and digest"),
    ('global.imageRegistry="https://registry"', "a host, with a port or path, without scheme"),
    ("runtimes.priority=0", "runtimes.priority is 0: at least 1"),
    ("localModelCache.enabled=true", "localModelCache.nodeGroups is []: it must not be empty"),
    ('models.flux.ingress.controller="apache"', 'controller is "apache": there are "", "nginx"'),
    ('models.flux.annotations={"serving.kserve.io/deploymentMode":"Knative"}',
     "serving.kserve.io/deploymentMode: the chart needs KServe's Standard mode"),
    ('defaults.topologySpread=[{"topologyKey":"zone","maxSkew":1,"whenUnsatisfiable":'
     '"DoNotSchedule","labelSelector":{}}]', "[0].labelSelector: the chart fills it in"),
    ("models.flux.storage.url=1", "models.flux.storage.url: say uri"),
    ("podMonitor=null", "podMonitor: null removes a key that the chart needs; leave it out"),
    ("defaults.gpu=null", "defaults.gpu: null removes a key that the chart needs; leave it out"),
    ("securityContext.fsGroup=1", "securityContext.fsGroup: a pod's: say podSecurityContext"),
    ('commonLabels={"app.kubernetes.io/name":"x"}', "app.kubernetes.io/name: the chart's"),
    ("commonLabels.a=1", "commonLabels.a is 1: a string is needed: quote it"),
    ('models.flux.extraContainers=[{"name":"kserve-container"}]', "other than those of KServe's"),
]  # fmt: skip

URIS = [
    "hf://flux", "hf://a/b/c", "hf://a/b:", "file:///models", "pvc://", "pvc:///path",
    "pvc://claim/../other", "oci://image", "black-forest-labs/FLUX.1-dev",
]  # fmt: skip

BY_TEMPLATE = [
    (('models.flux.extraVolumes=[{"name":"tmp","emptyDir":{}}]',),
     'models.flux.extraVolumes[0].name "tmp" is taken'),
    (('models.flux.extraVolumes=[{"name":"own","persistentVolumeClaim":{"claimName":"checkpoints"}}]',),
     "models.flux.extraVolumes[0] is a second volume of the claim checkpoints"),
    (('models.flux.extraVolumeMounts=[{"name":"x","mountPath":"/tmp/"}]',),
     "models.flux.extraVolumeMounts[0].mountPath /tmp/ is the chart's"),
    ((GPU, 'models.flux.resources.limits={"nvidia.com/gpu":1}'), "leave it out"),
    ((GPU, 'models.flux.resourceClaims=[{"name":"a","resourceClaimTemplateName":"b"}]'),
     "say gpu.count 0"),
    ((GPU, 'models.flux.gpu.resource="amd.com/gpu"'), "models.flux.gpu.resource is amd.com/gpu"),
    (('models.flux.resources.limits={"amd.com/gpu":1}',), "has amd.com/gpu: say gpu.count 1"),
    ((GPU, 'models.flux.resources.limits={"nvidia.com/mig-1g.10gb":1}'), "leave it out"),
    (('models.flux.resources={"requests":{"cpu":"1500m"},"limits":{"cpu":1}}',),
     "requests.cpu is 1500m and more than models.flux.resources.limits.cpu, 1"),
    (('models.flux.resources={"requests":{"memory":"1025Mi"},"limits":{"memory":"1Gi"}}',),
     "requests.memory is 1025Mi and more than models.flux.resources.limits.memory, 1Gi"),
    ((f'models.flux.canary=[{{{CANARY}5,"resources":{{"requests":{{"memory":"9Ti"}}}}}}]',),
     "models.flux.canary a.resources.requests.memory is 9Ti and more than"),
    ((f'models.flux.canary=[{{{CANARY}5,"resources":{{"limits":{{"memory":null}}}}}}]',),
     "models.flux.canary a.resources removes what the model's ServingRuntime has"),
    (('models.flux.serviceAccount={"create":false,"name":"a","annotations":{"a":"b"}}',),
     'annotations have no effect with serviceAccount.create false: annotate the account "a"'),
    (('models.flux.gpu.nodeSelector={"a":"b"}',), "say models.flux.nodeSelector"),
    (('models.flux.gpu.tolerations=[{"key":"a"}]',), "say models.flux.tolerations"),
    (('apiKeys.content="{\\"keys\\":[null]}"',), "apiKeys.content: keys[0].sha256 must be 64 hex"),
    (('models.flux.storage.uri="s3://a/b"', 'models.flux.env=[{"name":"AWS_ACCESS_KEY_ID"}]'),
     "models.flux.env[0] AWS_ACCESS_KEY_ID is the server's, and s3://a/b is downloaded before"),
    (('models.flux.storage.uri="s3://a/b"', 'defaults.env=[{"name":"AWS_ACCESS_KEY_ID"}]'),
     "defaults.env[0] AWS_ACCESS_KEY_ID is the server's"),
    (("models.x.storage.uri=\"pvc://a\"",), "models.x.format is needed"),
    (('models.x.format="flux"',), "models.x.storage.uri is needed"),
    (('models.flux.formatVersion="3"',), 'models.flux.formatVersion is "3": flux has 1'),
    (('models.qwen-vl.formatVersion="2"',), 'is "2": qwen-vl has 2.5 and 3'),
    ((ZERO, 'models.flux.autoscaling.wakeQuery="up"'),
     "models.flux.replicas.min 0 needs autoscaling.enabled"),
    (("defaults.replicas.min=0", "defaults.autoscaling.enabled=true"),
     "models.flux.replicas.min 0 needs activator.enabled, or autoscaling.wakeQuery"),
    (("models.flux.replicas={\"min\":3,\"max\":2}", "models.flux.autoscaling.enabled=true"),
     "models.flux.replicas.min is 3 and more than replicas.max, 2"),
    (("models.flux.replicas.max=2",), "models.flux.replicas.max 2 needs autoscaling.enabled"),
    ((URL, "models.flux.replicas.min=2"), "models.flux.settings.server.public_url needs one"),
    ((URL, 'models.flux.replicas={"min":1,"max":2}', "models.flux.autoscaling.enabled=true"),
     "models.flux.settings.server.public_url needs one replica"),
    ((URL, "defaults.autoscaling.enabled=true"), "settings.server.public_url needs one replica"),
    ((URL, f'models.flux.canary=[{{{CANARY}5}}]'), "settings.server.public_url needs one replica"),
    ((GPU,), "models.flux.rollout surge needs gpu.spare"),
    ((GPU, 'models.flux.rollout="in-place"',
      'models.flux.cache={"enabled":true,"precompile":true}'),
     "models.flux.cache.precompile needs gpu.spare"),
    (("models.flux.cache.precompile=true",), "models.flux.cache.precompile needs cache.enabled"),
    (('models.flux.cache={"enabled":true,"precompile":true}',
      'models.flux.storage.uri="hf://a/b"'),
     "models.flux.cache.precompile needs storage.uri pvc://"),
    (("models.flux.drain.graceSeconds=59",),
     "models.flux.drain.graceSeconds is 59 and less than timeoutSeconds, 60"),
    (("models.flux.settings.queue.default_timeout_s=61",),
     "models.flux.settings.queue.default_timeout_s is 61 and more than timeoutSeconds, 60"),
    (("models.flux.settings.server.port=9000",), "models.flux.settings.server.port is the chart's"),
    (("models.flux.settings.server.drain_timeout_s=9",), "say drain.graceSeconds"),
    (('models.flux.settings.compute.cache_dir="/x"',), "say cache.enabled"),
    (('models.flux.settings.cluster.events="on"',), "say events.enabled"),
    ((f'models.flux.canary=[{{{CANARY}60}},{{"name":"b","trafficPercent":41}}]',),
     "models.flux.canary: trafficPercent of all canaries together is 101"),
    ((f"models.flux.canary=[{{{CANARY}5}},{{{CANARY}5}}]",),
     'models.flux.canary[1].name "a" is taken'),
    ((f'models.flux.canary=[{{{CANARY}5,"replicas":2}}]',),
     "models.flux.canary[0].replicas is 2 and more than replicas.min, 1"),
    ((f"models.flux.canary=[{{{CANARY}5}}]", "defaults.autoscaling.enabled=true"),
     "models.flux.canary and models.flux.autoscaling.enabled exclude each other"),
    ((GPU, 'models.flux.rollout="in-place"', f"models.flux.canary=[{{{CANARY}5}}]"),
     "models.flux.canary needs gpu.spare of at least 1"),
    ((GPU, 'models.flux.rollout="in-place"', "models.flux.replicas.min=2",
      f'models.flux.canary=[{{{CANARY}50}},{{"name":"b","trafficPercent":5}}]'),
     "models.flux.canary needs gpu.spare of at least 1"),
    (('models.flux.storage.secretName="token"', "models.flux.serviceAccount.create=false"),
     "models.flux.storage.secretName has no effect"),
    (('localModelCache={"enabled":true,"nodeGroups":["gpu"]}',
      'models.flux.storage.uri="hf://a/b"'),
     "models.flux.storage.size is needed by localModelCache.enabled"),
    (('localModelCache={"enabled":true,"nodeGroups":["gpu"]}',
      'models.flux.storage={"uri":"hf://a/b","size":"1Gi"}',
      'models.qwen-vl.storage={"uri":"hf://a/b","size":"1Gi"}'),
     "models.qwen-vl.storage.uri is that of models.flux"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "message"), BY_SCHEMA, ids=[said for said, _ in BY_SCHEMA])
def test_what_the_schema_does_not_allow_is_refused_in_a_sentence(said: str, message: str) -> None:
    place, _, sentence = refusal(LAPTOP, sets=(said,)).partition("\n\n")
    assert place.startswith("Error: execution error at (predictors/templates/checks/")
    assert message in sentence


def test_everything_that_is_wrong_is_said_at_once() -> None:
    answer = refusal(LAPTOP, sets=("models.flux.sidecars=[]", "models.flux.gpu.count=2", "auth=1"))
    assert [line.split(":")[0] for line in answer.splitlines()[2:5]] == [
        "auth", "models.flux.gpu.count is 2", "models.flux.sidecars",
    ]  # fmt: skip


def test_helm_lint_holds_values_to_the_schema_as_well() -> None:
    done = helm("lint", str(CHART), "--set", "sidecars=1")
    assert done.returncode
    assert "additional properties 'sidecars' not allowed" in done.stdout + done.stderr


@pytest.mark.parametrize(("said", "message"), BY_TEMPLATE, ids=[said for _, said in BY_TEMPLATE])
def test_a_combination_that_cannot_work_is_refused_by_name(
    said: tuple[str, ...], message: str
) -> None:
    assert message in refusal(LAPTOP, sets=said)


@pytest.mark.parametrize("said", ["replicas.min=2", "gpu.spare=1", "canary[0].trafficPercent=0"])
def test_a_canary_whose_gpu_is_there_is_not_refused(said: str) -> None:
    sets = (GPU, 'models.flux.rollout="in-place"', f"models.flux.canary=[{{{CANARY}5}}]")
    objects = render(LAPTOP, sets=(*sets, f"models.flux.{said}"))
    assert of_kind(objects, "InferenceService")["flux"]["spec"]["canary"]


@pytest.mark.parametrize("uri", URIS)
def test_a_storage_uri_that_kserve_would_not_understand_is_refused(uri: str) -> None:
    answer = refusal(LAPTOP, sets=(f'models.flux.storage.uri="{uri}"',))
    assert f'models.flux.storage.uri is "{uri}": pvc://claim[/path], hf://' in answer


def test_zero_replicas_need_what_wakes_them() -> None:
    assert "models.flux.replicas.min 0 needs autoscaling.enabled" in refusal(LAPTOP, sets=(ZERO,))
    awake = "models.flux.autoscaling.enabled=true"
    assert (
        "models.flux.replicas.min 0 needs activator.enabled, or autoscaling.wakeQuery"
        in refusal(LAPTOP, sets=(ZERO, awake))
    )
