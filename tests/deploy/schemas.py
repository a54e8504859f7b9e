"""Schemas to hold rendered objects to: Kubernetes' own, strict, for every version that the chart is
for, and those in the CRDs of KServe, the Prometheus Operator, the Gateway API,
cert-manager, Envoy Gateway and Traefik.

Kubernetes' come with the wheel `kubernetes-validate`, CRDs out of Go modules
(`tests.e2e.cluster.crds`). A CRD's CEL rules need an API server and are not looked at:
tests/e2e/test_edge.py has one.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.e2e.cluster import crds

Schema = dict[str, Any]
VERSIONS = ("1.31", "1.32", "1.33", "1.34", "1.35")
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


@functools.cache
def custom(kind: str, api_version: str) -> Draft202012Validator:
    """The validator of a CRD's kind; raises `NoSchema`."""
    group, _, level = api_version.partition("/")
    for module in crds.CRDS:
        for path in crds.folder(module).glob(f"{group}_*.yaml"):
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
