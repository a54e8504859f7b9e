"""A model's objects beside its pods: account, rights, claim, pre-compile Job, caches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from predictors.environment import from_env
from tests.deploy.chart import CASES, NAMESPACE, PROFILES, environment, of_kind, refusal, render

FILES = [*PROFILES, *CASES]


@pytest.mark.parametrize("values", FILES, ids=lambda path: path.name)
def test_every_pod_runs_as_an_account_of_its_model(values: Path) -> None:
    objects = render(values)
    accounts = of_kind(objects, "ServiceAccount")
    for name, each in of_kind(objects, "InferenceService").items():
        account = each["spec"]["predictor"]["serviceAccountName"]
        is_given = (values.name, name) == ("oci-values.yaml", "captions")
        assert account == ("puller" if is_given else f"predictors-{name}")
        if account in accounts:
            assert accounts[account]["automountServiceAccountToken"] is False


def test_the_download_token_is_listed_where_kserve_looks_and_public_models_need_none() -> None:
    accounts = of_kind(render("ci/hf-values.yaml"), "ServiceAccount")
    assert accounts["predictors-flux"]["secrets"] == [{"name": "huggingface"}]
    assert "secrets" not in accounts["predictors-qwen-vl"]
    assert accounts["predictors-qwen-vl"]["metadata"]["annotations"] == {
        "example.com/identity": "reader"
    }


def test_events_give_the_accounts_these_rights_and_no_other() -> None:
    objects = render("values-laptop.yaml")
    role = of_kind(objects, "Role")["predictors-events"]
    rights = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert rights == {
        ("", "events", "create"), ("", "events", "patch"),
        ("", "pods", "get"), ("", "pods", "patch"),
        ("serving.kserve.io", "inferenceservices", "get"),
    }  # fmt: skip
    binding = of_kind(objects, "RoleBinding")["predictors-events"]
    assert binding["roleRef"]["name"] == "predictors-events"
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": f"predictors-{name}", "namespace": NAMESPACE}
        for name in ("flux", "qwen-vl")
    ]


def test_an_account_that_models_share_is_made_once_and_bound_once() -> None:
    shared = ('defaults.serviceAccount.name="shared"', 'models.flux.storage.secretName="one"')
    noted = tuple(
        f'models.{name}.serviceAccount.annotations={{"{name}":"{name}","both":"same"}}'
        for name in ("flux", "qwen-vl")
    )
    tokens = ('models.qwen-vl.storage.secretName="two"', *noted)
    objects = render("values-laptop.yaml", sets=(*shared, *tokens))
    (account,) = of_kind(objects, "ServiceAccount").values()
    assert account["metadata"]["name"] == "shared"
    assert account["secrets"] == [{"name": "one"}, {"name": "two"}]
    assert account["metadata"]["annotations"] == {
        "flux": "flux", "qwen-vl": "qwen-vl", "both": "same",
    }  # fmt: skip
    (subject,) = of_kind(objects, "RoleBinding")["predictors-events"]["subjects"]
    assert subject["name"] == "shared"


def test_an_annotation_of_a_shared_account_has_one_value() -> None:
    message = refusal("values-laptop.yaml", sets=(
        'defaults.serviceAccount={"name":"shared","annotations":{"identity":"a"}}',
        'models.qwen-vl.serviceAccount.annotations={"identity":"b"}',
    ))  # fmt: skip
    assert "models.qwen-vl.serviceAccount.annotations: identity differs" in message


def test_without_events_no_rights_are_granted() -> None:
    objects = render("values-laptop.yaml", sets=("events.enabled=false",))
    assert not of_kind(objects, "Role")
    assert not of_kind(objects, "RoleBinding")


def test_a_claim_is_made_where_none_is_named() -> None:
    claims = of_kind(render("ci/precompile-values.yaml"), "PersistentVolumeClaim")
    (claim,) = claims.values()
    assert claim["metadata"]["name"] == "predictors-qwen-vl-cache"
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "shared",
        "resources": {"requests": {"storage": "2Gi"}},
    }
    assert "annotations" not in claim["metadata"]


def test_a_volume_whose_claim_is_an_empty_key_is_passed_on() -> None:
    volume = {"name": "a", "persistentVolumeClaim": None}
    render("values-laptop.yaml", sets=(f"models.flux.extraVolumes={json.dumps([volume])}",))


@pytest.mark.parametrize("place", ["global.storageClass", "models.qwen-vl.cache.storageClassName"])
def test_a_dash_is_no_class_as_in_other_charts(place: str) -> None:
    sets = ('models.qwen-vl.cache.storageClassName=""', f'{place}="-"')
    (claim,) = of_kind(
        render("ci/precompile-values.yaml", sets=sets), "PersistentVolumeClaim"
    ).values()
    assert claim["spec"]["storageClassName"] == ""


def test_the_job_compiles_before_the_rollout_where_its_claim_is_there_and_else_after() -> None:
    jobs = of_kind(render("ci/precompile-values.yaml"), "Job")
    assert {name: job["metadata"]["annotations"]["helm.sh/hook"] for name, job in jobs.items()} == {
        "predictors-flux-precompile": "pre-install,pre-upgrade",
        "predictors-qwen-vl-precompile": "post-install,post-upgrade",
    }


def test_the_job_compiles_what_the_server_will_ask_for() -> None:
    objects = render("ci/precompile-values.yaml")
    pod = of_kind(objects, "Job")["predictors-flux-precompile"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    spec = of_kind(objects, "InferenceService")["flux"]["spec"]["predictor"]
    runtime = of_kind(objects, "ServingRuntime")["predictors-flux"]["spec"]["containers"][0]
    assert container["args"] == ["warm", "--model", "flux=/mnt/models"]
    assert container["image"] == runtime["image"]
    assert container["securityContext"] == runtime["securityContext"]
    assert container["resources"] == spec["model"]["resources"]
    served = ("PREDICTORS_ACCESS_", "PREDICTORS_TLS_", "PREDICTORS_SERVER_HEALTH_PORT",
              "PREDICTORS_SERVER_METRICS_PORT")  # fmt: skip
    asked = environment(runtime) | environment(spec["model"])
    assert environment(container) == {
        name: value for name, value in asked.items() if not name.startswith(served)
    }
    said = {name: value for name, value in environment(container).items() if isinstance(value, str)}
    assert from_env(said).compute.cache_dir == "/var/cache/predictors/compiled"
    assert pod["securityContext"] == spec["securityContext"]
    assert pod["tolerations"] == spec["tolerations"]


def test_the_job_writes_the_cache_reads_the_checkpoint_and_holds_no_token() -> None:
    jobs = of_kind(render("ci/precompile-values.yaml"), "Job")
    pod = jobs["predictors-flux-precompile"]["spec"]["template"]["spec"]
    claims = {
        each["name"]: each["persistentVolumeClaim"]
        for each in pod["volumes"]
        if "persistentVolumeClaim" in each
    }
    assert claims == {
        "compiled": {"claimName": "compiled"}, "checkpoint": {"claimName": "checkpoints"},
    }  # fmt: skip
    mounts = {each["mountPath"]: each for each in pod["containers"][0]["volumeMounts"]}
    assert "readOnly" not in mounts["/var/cache/predictors"]
    assert mounts["/mnt/models"]["readOnly"] is True
    assert mounts["/mnt/models"]["subPath"] == "deep/flux"
    assert pod["automountServiceAccountToken"] is False
    whole = jobs["predictors-qwen-vl-precompile"]["spec"]["template"]["spec"]["containers"][0]
    model = next(each for each in whole["volumeMounts"] if each["mountPath"] == "/mnt/models")
    assert "subPath" not in model


@pytest.mark.parametrize("values", FILES, ids=lambda path: path.name)
def test_no_job_runs_unasked(values: Path) -> None:
    jobs = [name for name in of_kind(render(values), "Job") if name.endswith("-precompile")]
    assert bool(jobs) == (values.name in {"values-production.yaml", "precompile-values.yaml"})


def test_downloads_are_cached_on_nodes_where_that_is_asked_for() -> None:
    caches = of_kind(render("ci/hf-values.yaml"), "LocalModelCache")
    assert caches[f"{NAMESPACE}-predictors-flux"]["spec"] == {
        "sourceModelUri": "hf://black-forest-labs/FLUX.1-dev:main",
        "modelSize": "34Gi",
        "nodeGroups": ["gpu"],
        "serviceAccountName": "downloader",  # KServe's, not the release's: see localModelCache
    }
    unnamed = render("ci/hf-values.yaml", sets=('localModelCache.serviceAccountName=""',))
    for cache in of_kind(unnamed, "LocalModelCache").values():
        assert "serviceAccountName" not in cache["spec"]
    assert not of_kind(render("values-one-gpu.yaml"), "LocalModelCache")


LONG = "flux-black-forest-labs-dev-2025-variant"
TWO_LONG = {
    f"{LONG}{number}": {
        "format": "flux",
        "storage": {"uri": "pvc://checkpoints/flux"},
        "replicas": {"min": 0, "max": 2},
        "autoscaling": {"enabled": True},
        "activator": {"enabled": True},
        "cache": {"enabled": True},
    }
    for number in (1, 2)
}


def test_long_names_of_models_and_releases_stay_apart() -> None:
    """The account of a model's pods must not be that of its activator, which may scale it."""
    sets = (f"models={json.dumps(TWO_LONG | {'flux': None})}",)
    objects = render(
        "ci/activator-values.yaml", sets=sets, release="a-release-with-quite-a-long-name"
    )
    for kind in {each["kind"] for each in objects}:
        named = of_kind(objects, kind)  # fails on two of one name
        assert max(map(len, named)) <= 63
    accounts = of_kind(objects, "ServiceAccount")
    assert len(accounts) == 4
    scales = {
        name
        for name, each in of_kind(objects, "Role").items()
        if each["rules"][0]["resources"] == ["deployments/scale"]
    }
    bound = {
        each["subjects"][0]["name"]
        for each in of_kind(objects, "RoleBinding").values()
        if each["roleRef"]["name"] in scales
    }
    served = {
        each["spec"]["predictor"]["serviceAccountName"]
        for each in of_kind(objects, "InferenceService").values()
    }
    assert len(bound) == len(served) == 2
    assert bound | served == accounts.keys()


def test_a_model_whose_name_is_that_of_an_activator_is_refused() -> None:
    model = '{"format":"flux","storage":{"uri":"pvc://a/b"}}'
    message = refusal("ci/activator-values.yaml", sets=(f"models.flux-activator={model}",))
    assert "models.flux.activator.enabled and models.flux-activator" in " ".join(message.split())
