"""Schemas to hold rendered objects to: Kubernetes' own, strict, for every version that the chart is
for, and those in the CRDs of KServe, the Prometheus Operator, the Gateway API,
cert-manager, Envoy Gateway and Traefik.

Kubernetes' come with the wheel `kubernetes-validate`, CRDs out of Go modules, copied into the
machine's cache. A CRD's CEL rules need an API server and are not looked at; tests/e2e has one.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.e2e.cluster import recipe
from tests.e2e.cluster.building import find_go, one_at_a_time, run_go
from tests.e2e.cluster.places import cache

Schema = dict[str, Any]
VERSIONS = ("1.31", "1.32", "1.33", "1.34", "1.35")
KSERVE = "github.com/kserve/kserve"
GATEWAY = "sigs.k8s.io/gateway-api"
OPERATOR = "github.com/prometheus-operator/prometheus-operator"
OPERATOR_VERSION = "v0.85.0"
CERT_MANAGER = "github.com/cert-manager/cert-manager"
CERT_MANAGER_VERSION = "v1.19.1"
ENVOY = "github.com/envoyproxy/gateway"
ENVOY_VERSION = "v1.9.1"
TRAEFIK = "github.com/traefik/traefik/v3"
TRAEFIK_VERSION = "v3.7.13"
OWN_VERSIONS = {  # of modules that the test cluster is not made of
    OPERATOR: OPERATOR_VERSION, CERT_MANAGER: CERT_MANAGER_VERSION, ENVOY: ENVOY_VERSION,
    TRAEFIK: TRAEFIK_VERSION,
}  # fmt: skip
CRDS = {  # module: where its CRDs of what the chart and docs/examples/edge have lie
    KSERVE: (
        "config/crd/full/serving.kserve.io_servingruntimes.yaml",
        "config/crd/full/serving.kserve.io_inferenceservices.yaml",
        "config/crd/full/localmodel/serving.kserve.io_localmodelcaches.yaml",
    ),
    CERT_MANAGER: (
        "deploy/crds/cert-manager.io_certificates.yaml",
        "deploy/crds/cert-manager.io_issuers.yaml",
    ),
    GATEWAY: tuple(
        f"config/crd/standard/gateway.networking.k8s.io_{name}.yaml"
        for name in ("httproutes", "grpcroutes", "gateways", "gatewayclasses")
    ),
    ENVOY: tuple(
        "charts/gateway-helm/charts/crds/crds/generated/" + f"gateway.envoyproxy.io_{name}.yaml"
        for name in ("clienttrafficpolicies", "securitypolicies")
    ),
    TRAEFIK: tuple(
        f"docs/content/reference/dynamic-configuration/traefik.io_{name}.yaml"
        for name in ("ingressroutes", "middlewares", "tlsoptions")
    ),
    OPERATOR: (
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
}
GROUPS = (
    "serving.kserve.io", "monitoring.coreos.com", "gateway.networking.k8s.io", "cert-manager.io",
    "gateway.envoyproxy.io", "traefik.io",
)  # fmt: skip
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 2 MB of YAML


class NoSchema(KeyError):
    """There is no schema of this kind in this version of Kubernetes."""


@functools.cache
def folder(version: str) -> Path:
    """Where the wheel keeps the strict schemas of a Kubernetes version, such as `1.34`."""
    root = Path(str(files("kubernetes_validate"))) / "kubernetes-json-schema"
    (found,) = root.glob(f"v{version}.*-local-strict")
    return found


@functools.cache
def definitions(version: str) -> Registry[Any]:
    """The definitions that every schema of one version refers to."""
    content = json.loads((folder(version) / "_definitions.json").read_text())
    return Registry().with_resource("_definitions.json", Resource.from_contents(content))


@functools.cache
def builtin(kind: str, api_version: str, version: str) -> Draft202012Validator:
    """The validator of one of Kubernetes' own kinds; raises `NoSchema`."""
    group, _, level = api_version.rpartition("/")
    short = f"{group.partition('.')[0]}-{level}" if group else level
    path = folder(version) / f"{kind.lower()}-{short}.json"
    if not path.exists():
        raise NoSchema(f"{api_version} {kind} in Kubernetes {version}")
    schema = json.loads(path.read_text())
    found = Resource.from_contents(schema)
    registry = definitions(version).with_resource("", found)
    return Draft202012Validator(schema, registry=registry)


def module_version(module: str) -> str:
    """The version of a module: KServe's is that of the cluster's controller."""
    if module in OWN_VERSIONS:
        return OWN_VERSIONS[module]
    found = re.search(rf"^\s*{module} (v\S+)", (recipe.BUILD / "go.mod").read_text(), re.MULTILINE)
    assert found is not None, f"go.mod names no {module}"
    return found.group(1)


def crd_folder(module: str) -> Path:
    """The copied CRDs of a module; downloads them once. Raises `ClusterError` if it can't."""
    version = module_version(module)
    kept = cache() / "crd" / f"{module.removeprefix('github.com/').replace('/', '-')}-{version}"
    with one_at_a_time(cache() / "crd"):
        if all((kept / Path(path).name).exists() for path in CRDS[module]):
            return kept
        said = run_go(find_go(), ["mod", "download", "-json", f"{module}@{version}"])
        source = Path(json.loads(said)["Dir"])
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=kept.parent))
        for path in CRDS[module]:
            shutil.copyfile(source / path, beside / Path(path).name)
        shutil.rmtree(kept, ignore_errors=True)
        beside.rename(kept)
    return kept


@functools.cache
def custom(kind: str, api_version: str) -> Draft202012Validator:
    """The validator of a CRD's kind; raises `NoSchema`."""
    group, _, level = api_version.partition("/")
    for module in CRDS:
        for path in crd_folder(module).glob(f"{group}_*.yaml"):
            spec = yaml.load(path.read_text(), Loader=LOADER)["spec"]
            if spec["names"]["kind"] != kind:
                continue
            for version in spec["versions"]:
                if version["name"] == level and version["served"]:
                    return Draft202012Validator(
                        strict(completed(kind, version["schema"]["openAPIV3Schema"]))
                    )
    raise NoSchema(f"{api_version} {kind}")


def completed(kind: str, schema: Schema) -> Schema:
    """KServe's schema without a slip: it asks for `name` in a canary's model, which in the stable
    one may be left out. Its webhook writes an empty one before the API server looks.
    """
    if kind == "InferenceService":
        canary = schema["properties"]["spec"]["properties"]["canary"]["items"]["properties"]
        canary["predictor"]["properties"]["model"]["required"].remove("name")
    return schema


def strict(schema: Schema) -> Schema:
    """A CRD's schema as JSON Schema that refuses what the API server would drop or refuse."""
    schema = copy.copy(schema)
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if schema.pop("nullable", False) and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    if "properties" in schema:
        schema["properties"] = {name: strict(s) for name, s in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = strict(schema[key])
    return schema


def wrongs(found: dict[str, Any], version: str) -> Iterator[str]:
    """The problems of an object in a Kubernetes version; raises `NoSchema`."""
    kind, api_version = found["kind"], found["apiVersion"]
    if api_version.partition("/")[0] in GROUPS:
        validator = custom(kind, api_version)
        # a CRD says nothing of metadata, which is the same for every kind
        about = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": found["metadata"]}
        yield from (said(error) for error in builtin("ConfigMap", "v1", version).iter_errors(about))
    else:
        validator = builtin(kind, api_version, version)
    yield from (said(error) for error in validator.iter_errors(found))


def said(error: Any) -> str:
    """Where, and what."""
    return f"{error.json_path}: {error.message[:300]}"
