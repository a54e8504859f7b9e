"""Adapters of a model in the chart: their downloads and mounts, and the server's setting."""

from __future__ import annotations

import json

import pytest

from tests.deploy.chart import Object, environment, of_kind, refusal, render

LAPTOP = "values-laptop.yaml"
CASE = "ci/loras-values.yaml"
ON_CLAIM = 'models.flux.loras=[{"name":"a","uri":"pvc://styles/flux/a","file":"a.safetensors"}]'
ON_HUB = 'models.flux.loras=[{"name":"a","uri":"hf://me/a"}]'


def predictor(*values: str, sets: tuple[str, ...] = ()) -> Object:
    found: Object = of_kind(render(*values, sets=sets), "InferenceService")["flux"]
    return found["spec"]["predictor"]  # type: ignore[no-any-return]


def test_downloads_and_claims_are_found_under_the_paths_of_the_setting() -> None:
    found = predictor(CASE)
    assert found["storageUris"] == [
        {"uri": "hf://black-forest-labs/FLUX.1-schnell", "mountPath": "/mnt/models"},
        {"uri": "hf://styles/watercolour:main", "mountPath": "/mnt/loras/0"},
    ]
    assert "storageUri" not in found["model"]  # KServe refuses both
    mount = {"name": "claim-0", "mountPath": "/loras/1", "readOnly": True, "subPath": "flux/ink"}
    assert mount in found["model"]["volumeMounts"]
    claim = {"claimName": "styles", "readOnly": True}
    assert {"name": "claim-0", "persistentVolumeClaim": claim} in found["volumes"]
    said = environment(found["model"])["PREDICTORS_SERVER_LORAS"]
    assert said == "watercolour=/mnt/loras/0/schnell/watercolour.safetensors,ink=/loras/1"


def test_claims_alone_leave_the_models_storage_as_it_is() -> None:
    found = predictor(LAPTOP, sets=(ON_CLAIM,))
    assert "storageUris" not in found
    assert found["model"]["storageUri"] == "pvc://checkpoints/shapes-flux"
    said = environment(found["model"])["PREDICTORS_SERVER_LORAS"]
    assert said == "a=/loras/0/a.safetensors"
    plain = predictor(LAPTOP)
    assert "volumeMounts" not in plain["model"]
    assert "PREDICTORS_SERVER_LORAS" not in environment(plain["model"])


def test_adapters_on_the_checkpoints_own_claim_are_folders_of_one_volume() -> None:
    """A kubelet waits for ever for a second volume of a claim. KServe adds neither volume nor mount
    to a container that has a mount of this name."""
    uris = {"a": "pvc://checkpoints/styles/a", "b": "pvc://more/b"}
    loras = [{"name": name, "uri": uri} for name, uri in uris.items()]
    sets = (
        f"models.flux.loras={json.dumps(loras)}",
        'models.flux.checker={"uri":"pvc://checkpoints/nsfw","labels":["nsfw"]}',
        'models.flux.cache={"enabled":true,"precompile":true}',
    )
    rendered = render(LAPTOP, sets=sets)
    found = of_kind(rendered, "InferenceService")["flux"]["spec"]["predictor"]
    job = of_kind(rendered, "Job")["predictors-flux-precompile"]["spec"]["template"]["spec"]
    assert found["model"]["storageUri"] == "pvc://checkpoints/shapes-flux"
    for pod, container in ((found, found["model"]), (job, job["containers"][0])):
        claims = {
            each["name"]: each["persistentVolumeClaim"]["claimName"]
            for each in pod["volumes"] if "persistentVolumeClaim" in each
        }  # fmt: skip
        assert claims.pop("compiled")
        assert claims == {"kserve-pvc-source": "checkpoints", "claim-1": "more"}
        assert {
            each["mountPath"]: (each["name"], each["subPath"], each["readOnly"])
            for each in container["volumeMounts"] if each["name"] in claims
        } == {
            "/mnt/models": ("kserve-pvc-source", "shapes-flux", True),
            "/loras/0": ("kserve-pvc-source", "styles/a", True),
            "/loras/1": ("claim-1", "b", True),
            "/checker": ("kserve-pvc-source", "nsfw", True),
        }  # fmt: skip


def test_a_checkpoint_in_a_folder_of_a_claim_stands_beside_downloaded_adapters() -> None:
    found = predictor(LAPTOP, sets=(ON_HUB,))
    assert found["storageUris"] == [{"uri": "hf://me/a", "mountPath": "/mnt/loras/0"}]
    assert "storageUri" not in found["model"]
    mount = {"name": "kserve-pvc-source", "mountPath": "/mnt/models", "readOnly": True}
    assert mount | {"subPath": "shapes-flux"} in found["model"]["volumeMounts"]


def test_the_precompile_job_mounts_what_the_server_does() -> None:
    cache = 'models.flux.cache={"enabled":true,"precompile":true}'
    job = of_kind(render(LAPTOP, sets=(ON_CLAIM, cache)), "Job")["predictors-flux-precompile"]
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert environment(container)["PREDICTORS_SERVER_LORAS"] == "a=/loras/0/a.safetensors"
    mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    assert mounted["/loras/0"] in {each["name"] for each in pod["volumes"]}


def test_a_policy_lets_adapters_be_downloaded_for_a_checkpoint_on_a_claim() -> None:
    sets = ('models.flux.storage.uri="pvc://checkpoints"', "networkPolicy.enabled=true")
    policies = {
        is_downloaded: of_kind(
            render(LAPTOP, sets=(*sets, ON_HUB if is_downloaded else ON_CLAIM)), "NetworkPolicy"
        )["predictors-flux"]
        for is_downloaded in (True, False)
    }
    opened = {
        key: sum(
            rule["ports"] == [{"port": 443, "protocol": "TCP"}] for rule in x["spec"]["egress"]
        )
        for key, x in policies.items()
    }
    assert opened == {True: 1, False: 0}


def test_a_canary_has_the_adapters_of_its_model() -> None:
    sets = (ON_CLAIM, 'models.flux.canary=[{"name":"b","trafficPercent":5}]')
    service = of_kind(render(LAPTOP, sets=sets), "InferenceService")["flux"]
    canary = service["spec"]["canary"][0]["predictor"]
    assert environment(canary["model"])["PREDICTORS_SERVER_LORAS"] == "a=/loras/0/a.safetensors"


REFUSED = [
    ((ON_HUB, 'models.flux.storage.uri="oci://registry/image"'),
     "models.flux.loras with hf:// need storage.uri hf:// or pvc://"),
    (('models.flux.loras=[{"name":"a","uri":"oci://registry/image"}]',),
     "models.flux.loras[0].uri is oci://registry/image: adapters come from hf:// or pvc://"),
    (('models.flux.loras=[{"name":"a","uri":"pvc://a"},{"name":"a","uri":"pvc://b"}]',),
     'models.flux.loras[1].name "a" is taken by another adapter'),
    ((ON_HUB, 'models.flux.storage={"uri":"hf://a/b","size":"1Gi"}',
      'models.qwen-vl.storage={"uri":"hf://a/c","size":"1Gi"}',
      'localModelCache={"enabled":true,"nodeGroups":["gpu"]}'),
     "models.flux.loras with hf:// exclude localModelCache.enabled"),
    ((ON_HUB, 'models.flux.storage.uri="pvc://checkpoints"',
      'models.flux.cache={"enabled":true,"precompile":true}'),
     "models.flux.cache.precompile needs adapters that its Job can mount"),
    (('models.flux.settings.server.loras="a=/x"',),
     "models.flux.settings.server.loras is the chart's: say loras"),
    (('models.flux.loras=[{"name":"a:b","uri":"pvc://a"}]',), "models.flux.loras[0].name is"),
    (('models.flux.loras=[{"name":"a"}]',), "models.flux.loras[0].uri is needed"),
    (('models.flux.loras=[{"name":"a","uri":"ftp://a/b"}]',), "models.flux.loras[0].uri is"),
    (('models.flux.loras=[{"name":"a","uri":"pvc://a","file":"../b"}]',),
     "models.flux.loras[0].file is"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_adapters_that_cannot_work_are_refused_by_name(said: tuple[str, ...], message: str) -> None:
    assert message in refusal(LAPTOP, sets=said)
