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
STRICTLY = ("--server-side", "--validate=strict")
BROKEN: dict[str, tuple[str, object, str]] = {  # kind: where, a value, what the API server says
    "Certificate": ("spec.usages", ["server"], "Unsupported value"),
    "Issuer": ("spec.ca.secretNam", "a", "not declared"),
    "GatewayClass": ("spec.controllerName", "envoy", "should match"),
    # a rule in CEL, which the schema alone does not hold
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


def named(each: Object) -> tuple[str, str]:
    """Kind and name."""
    return each["kind"], each["metadata"]["name"]


def refusal(each: Object) -> str:
    """The API server's refusal of an object; empty where it would take it."""
    try:
        run("kubectl", "apply", *STRICTLY, "--dry-run=server", "-f", "-", stdin=json.dumps(each))
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
    """The CRDs, which stay, and the namespaces of the examples."""
    for module in crds.EDGE:
        run("kubectl", "apply", "--server-side", "-f", str(crds.folder(module)))
    run("kubectl", "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    made: list[str] = []  # and no others: these names may be taken on somebody's cluster
    try:
        for space in SPACES:
            run("kubectl", "create", "namespace", space)
            made.append(space)
        yield
    finally:
        if made:
            run("kubectl", "delete", "gatewayclass", "envoy", "--ignore-not-found")
            run("kubectl", "delete", "namespace", *made, "--wait=false")


@pytest.mark.parametrize("name", FILES)
def test_every_object_is_taken_and_read_back_as_written(spaces: None, name: str) -> None:
    file = str(FILES[name])
    run("kubectl", "apply", *STRICTLY, "-f", file)
    found = json.loads(run("kubectl", "get", "-f", file, "-o", "json"))["items"]
    written = objects(name)
    assert [named(each) for each in found] == [named(each) for each in written]
    for said, there in zip(written, found, strict=True):
        assert kept(said["spec"], there["spec"]), (said, there)


def test_each_kinds_rules_see_an_object_that_breaks_one(spaces: None) -> None:
    every = [each for name in FILES for each in objects(name)]
    assert set(BROKEN) == {each["kind"] for each in every}
    for kind, (where, value, said) in BROKEN.items():
        broken = copy.deepcopy(next(each for each in every if each["kind"] == kind))
        *path, key = where.split(".")
        inner: Any = broken
        for part in path:
            inner = inner[int(part) if part.isdigit() else part]
        inner[key] = value
        answer = refusal(broken)
        assert said in answer, (kind, answer)
