"""docs/examples/edge at a real API server: every object is taken with strict validation, CEL rules
included, and read back with all that it says; and each kind's rules see an object that breaks one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.e2e.cluster import crds
from tests.e2e.conftest import ROOT
from tests.e2e.kube import CommandFailed, Object, run

FILES = {path.stem: path for path in sorted((ROOT / "docs/examples/edge").glob("*.yaml"))}
SPACES = ("vision", "gateway")  # of the examples
BROKEN: dict[str, tuple[str, object, str]] = {  # kind: where, a value, what the API server says
    "Certificate": ("spec.usages", ["server"], "Unsupported value"),
    "Issuer": ("spec.ca.secretNam", "a", "not declared"),
    "GatewayClass": ("spec.controllerName", "envoy", "should match"),
    # a rule in CEL, of which the schema alone knows nothing
    "Gateway": ("spec.listeners.0.tls", {"mode": "Terminate"}, "tls must not be specified for"),
    "HTTPRoute": ("spec.rules.0.timeouts", {"request": "1s", "backendRequest": "2s"}, "backendReq"),
    "GRPCRoute": ("spec.rules.0.matches", [{"method": {"type": "Exact"}}], "must be specified"),
    "SecurityPolicy": ("spec.targetRefs.0.kind", "Service", "targetRefs[*].kind of"),
    "ClientTrafficPolicy": ("spec.targetRefs.0.kind", "Service", "targetRefs[*].kind of"),
    "IngressRoute": ("spec.routes.0.services.0.prt", 80, "not declared"),
    "Middleware": ("spec.basicAuth.headerFeld", "a", "not declared"),
    "TLSOption": ("spec.minVersions", "VersionTLS12", "not declared"),
}


def objects(name: str) -> list[Object]:
    """Every object of one example."""
    return [each for each in yaml.safe_load_all(FILES[name].read_text()) if each]


def apply(each: Object, *words: str) -> str:
    """Apply one object server side; unknown fields are refused."""
    strictly = ("--server-side", "--validate=strict", *words)
    return run("kubectl", "apply", *strictly, "-f", "-", stdin=json.dumps(each))


def refusal(each: Object) -> str:
    """What the API server says against an object; empty where it would take it."""
    try:
        apply(each, "--dry-run=server")
    except CommandFailed as error:
        return str(error)
    return ""


def kept(said: Any, found: Any) -> bool:
    """True if all of `said` is in `found`, which may have defaults beside it."""
    if isinstance(said, dict):
        return all(key in found and kept(value, found[key]) for key, value in said.items())
    if isinstance(said, list):
        return len(said) == len(found) and all(map(kept, said, found))
    return bool(said == found)


@pytest.fixture(scope="module")
def spaces(cluster_up: None) -> Iterator[None]:
    """The CRDs, and the namespaces of the examples."""
    for module in crds.EDGE:
        run("kubectl", "apply", "--server-side", "-f", str(crds.folder(module)))
    run("kubectl", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    for space in SPACES:
        run("kubectl", "create", "namespace", space)
    yield
    run("kubectl", "delete", "gatewayclass", "envoy", "--ignore-not-found")
    run("kubectl", "delete", "namespace", *SPACES, "--ignore-not-found", timeout_s=120)


@pytest.mark.parametrize("name", FILES)
def test_every_object_is_taken_and_read_back_as_written(spaces: None, name: str) -> None:
    for each in objects(name):
        apply(each)
        about = each["metadata"]
        kind = f"{each['kind']}.{each['apiVersion'].partition('/')[0]}"
        where = ("-n", about["namespace"]) if "namespace" in about else ()
        found = json.loads(run("kubectl", "get", kind, about["name"], *where, "-o", "json"))
        assert kept(each["spec"], found["spec"]), (each, found)


def test_each_kinds_rules_see_an_object_that_breaks_one(spaces: None) -> None:
    every = [each for name in FILES for each in objects(name)]
    assert set(BROKEN) == {each["kind"] for each in every}
    for kind, (where, value, said) in BROKEN.items():
        broken = copy.deepcopy(next(each for each in every if each["kind"] == kind))
        assert not refusal(broken), kind
        *path, key = where.split(".")
        inner: Any = broken
        for part in path:
            inner = inner[int(part) if part.isdigit() else part]
        inner[key] = value
        answer = refusal(broken)
        assert said in answer, (kind, answer)
