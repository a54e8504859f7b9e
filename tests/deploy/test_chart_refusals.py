"""Values that can't be used are refused before anything is applied, by a message with the key."""

from __future__ import annotations

import pytest

from tests.deploy.chart import of_kind, refusal, render

LAPTOP = "values-laptop.yaml"
ZERO = "models.flux.replicas.min=0"
GPU = "models.flux.gpu.count=1"
URL = 'models.flux.settings.server.public_url="https://pictures.example.com"'
CANARY = '"name":"a","trafficPercent":'

BY_SCHEMA = [
    ("model.flux=1", "'model'"),
    ("models.flux.replicaz=1", "'/models/flux': additional properties 'replicaz'"),
    ("defaults.cash.enabled=true", "'/defaults': additional properties 'cash'"),
    ('models.flux.replicas.min="two"', "'/models/flux/replicas/min': got string"),
    ("models.flux.settings.queue.capazity=1", "'/models/flux/settings/queue': additional properties"
     " 'capazity'"),
    ("models.flux.settings.cue.capacity=1", "'/models/flux/settings': additional properties 'cue'"),
    ('models.flux.settings.queue.capacity="many"', "/settings/queue/capacity': got string"),
    ("models.flux.settings.flux.slots=0", "/settings/flux/slots': minimum"),
    ('models.flux.settings.compute.compile="fast"', "/settings/compute/compile': value must be"),
    ('models.flux.format="llava"', "'/models/flux/format': value must be one of 'flux', 'qwen-vl'"),
    ("models.qwen-vl.formatVersion=2.5", "'/models/qwen-vl/formatVersion': got number"),
    ('models.Flux.format="flux"', "'Flux' does not match"),
    ('models.flux.rollout="recreate"', "'/models/flux/rollout': value must be"),
    ("models.flux.gpu.count=2", "'/models/flux/gpu/count': maximum"),
    ('models.flux.gpu.resource="gpu"', "'/models/flux/gpu/resource'"),
    ("models.flux.drain.preStopSeconds=0", "'/models/flux/drain/preStopSeconds': minimum"),
    ('models.flux.shm.size="big"', "'/models/flux/shm/size'"),
    ('models.flux.resources.limits.memory="1 GB"', "'/models/flux/resources/limits/memory'"),
    ("models.flux.resources.limit={}", "'/models/flux/resources': additional properties 'limit'"),
    (f"models.flux.canary=[{{{CANARY}101}}]", "'/models/flux/canary/0/trafficPercent': maximum"),
    (f"models.flux.canary=[{{{CANARY}-1}}]", "'/models/flux/canary/0/trafficPercent': minimum"),
    ('models.flux.canary=[{"name":"a"}]', "'/models/flux/canary/0': missing property"
     " 'trafficPercent'"),
    (f'models.flux.canary=[{{{CANARY}5,"autoscaling":{{}}}}]', "additional properties"
     " 'autoscaling'"),
    ('models.flux.env=[{"name":"PYTHONPATH","value":"/x"}]', "'/models/flux/env/0/name'"),
    ('models.flux.env=[{"name":"PREDICTORS_FLUX_SLOTS","value":"1"}]', "'/models/flux/env/0/name'"),
    ('image.digest="sha256:abc"', "'/image/digest'"),
    ('image.pullPolicy="Sometimes"', "'/image/pullPolicy'"),
    ('image.repository="https://registry/x"', "'/image/repository'"),
    ('global.imageRegistry="https://registry"', "'/global/imageRegistry'"),
    ("runtimes.priority=0", "'/runtimes/priority': minimum"),
    ("localModelCache.enabled=true", "'/localModelCache/nodeGroups'"),
    ('models.flux.ingress.controller="apache"', "'/models/flux/ingress/controller'"),
    ('models.flux.annotations={"serving.kserve.io/deploymentMode":"Knative"}',
     "'serving.kserve.io/deploymentMode'"),
    ('defaults.topologySpread=[{"topologyKey":"zone","maxSkew":1,"whenUnsatisfiable":'
     '"DoNotSchedule","labelSelector":{}}]', "additional properties 'labelSelector'"),
    ("models.flux.storage.url=1", "'/models/flux/storage': additional properties 'url'"),
]  # fmt: skip

URIS = [
    "hf://flux", "hf://a/b/c", "hf://a/b:", "file:///models", "pvc://", "pvc:///path",
    "pvc://claim/../other", "oci://image", "black-forest-labs/FLUX.1-dev",
]  # fmt: skip

BY_TEMPLATE = [
    (("models.x.storage.uri=\"pvc://a\"",), "models.x.format is needed"),
    (('models.x.format="flux"',), "models.x.storage.uri is needed"),
    (('models.flux.formatVersion="3"',), 'models.flux.formatVersion is "3": flux has 1'),
    (('models.qwen-vl.formatVersion="2"',), 'is "2": qwen-vl has 2.5 and 3'),
    ((ZERO, 'models.flux.autoscaling.wakeQuery="up"'),
     "models.flux.replicas.min 0 needs autoscaling.enabled"),
    (("defaults.replicas.min=0", "defaults.autoscaling.enabled=true"),
     "models.flux.replicas.min 0 needs autoscaling.wakeQuery"),
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
def test_the_schema_names_what_it_refuses(said: str, message: str) -> None:
    answer = refusal(LAPTOP, sets=(said,))
    assert "values don't meet the specifications of the schema" in answer
    assert message in answer


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
    assert "'/models/flux/storage/uri'" in answer


def test_the_schema_itself_demands_a_wake_query_for_zero_replicas() -> None:
    assert "'/models/flux': missing property 'autoscaling'" in refusal(LAPTOP, sets=(ZERO,))
    awake = "models.flux.autoscaling.enabled=true"
    answer = refusal(LAPTOP, sets=(ZERO, awake))
    assert "'/models/flux/autoscaling': missing property 'wakeQuery'" in answer
    empty = (ZERO, awake, 'models.flux.autoscaling.wakeQuery=""')
    assert "'/models/flux/autoscaling/wakeQuery': minLength" in refusal(LAPTOP, sets=empty)
