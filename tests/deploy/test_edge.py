"""docs/examples/edge: every object fits its CRD's schema, and with the values of edge-values.yaml
the examples lead to the release's Services, over TLS, past authentication.

No gateway runs here, and CEL rules of CRDs are not looked at: tests/e2e/test_edge.py asks an API
server. Envoy Gateway and Traefik are run nowhere; tests/e2e/test_gateway.py runs nginx.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml

from predictors.environment import from_env
from tests.deploy import schemas
from tests.deploy.chart import CHART, Object, environment, of_kind, render
from tests.deploy.dockerfile import ROOT

FILES = {path.stem: path for path in sorted((ROOT / "docs/examples/edge").glob("*.yaml"))}
VALUES = CHART / "ci/edge-values.yaml"
CALLS = {80, 8081}
WRONG: dict[str, tuple[str, object]] = {  # kind: where, and what its schema must refuse
    "Issuer": ("spec.ca.secret", "a"),
    "Certificate": ("spec.dnsNames", "models.example.com"),
    "GatewayClass": ("spec.controllerName", 1),
    "Gateway": ("spec.listeners.1.tls.mode", "Terminates"),
    "HTTPRoute": ("spec.rules.0.timeout", {"request": "1s"}),
    "GRPCRoute": ("spec.rules.0.backendRefs.0.port", "grpc"),
    "ClientTrafficPolicy": ("spec.tls.minVersion", "1.4"),
    "SecurityPolicy": ("spec.apiKeyAuth.sanitise", True),
    "Middleware": ("spec.basicAuth.headerFeld", "a"),
    "IngressRoute": ("spec.routes.0.services.0.prt", 80),
    "TLSOption": ("spec.minVersions", "VersionTLS12"),
}


def objects(name: str) -> list[Object]:
    return [each for each in yaml.safe_load_all(FILES[name].read_text()) if each]


def every() -> list[Object]:
    return [each for name in FILES for each in objects(name)]


def one(name: str, kind: str) -> Object:
    (found,) = [each for each in objects(name) if each["kind"] == kind]
    return found


def routes() -> list[Object]:
    """Envoy Gateway's routes to models."""
    found = [each for each in objects("envoy-gateway") if each["kind"].endswith("Route")]
    return [each for each in found if "backendRefs" in str(each)]


def rules() -> list[Any]:
    """Traefik's routes."""
    found: list[Any] = one("traefik", "IngressRoute")["spec"]["routes"]
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_object_fits_its_schema(name: str) -> None:
    wrong = [said for each in objects(name) for said in schemas.wrongs(each, "1.35")]
    assert wrong == []


def test_each_kinds_schema_sees_a_wrong_object() -> None:
    for kind, (where, value) in WRONG.items():
        found = copy.deepcopy(next(each for each in every() if each["kind"] == kind))
        *path, key = where.split(".")
        inner: Any = found
        for part in path:
            inner = inner[int(part) if part.isdigit() else part]
        inner[key] = value
        assert list(schemas.wrongs(found, "1.35")), kind
    assert set(WRONG) == {each["kind"] for each in every()}


def test_every_route_ends_at_a_service_of_the_release_and_never_at_metrics_or_probes() -> None:
    models = of_kind(render(VALUES), "InferenceService")
    services = {f"{name}-predictor" for name in models}
    backends = [
        backend for each in routes() for rule in each["spec"]["rules"]
        for backend in rule["backendRefs"]
    ] + [service for rule in rules() for service in rule["services"]]  # fmt: skip
    assert {backend["name"] for backend in backends} == services
    assert {backend["port"] for backend in backends} == CALLS
    assert {each["metadata"]["namespace"] for each in routes()} == {"vision"}
    for service in rules():
        for backend in service["services"]:
            assert (backend["port"] == 8081) == (backend.get("scheme") == "h2c")


def test_no_route_has_probes_or_metrics_and_each_path_is_one_of_the_server() -> None:
    paths = [
        match["path"]["value"] for each in routes() if each["kind"] == "HTTPRoute"
        for rule in each["spec"]["rules"] for match in rule["matches"]
    ] + re.findall(r"PathPrefix\(`(.*?)`\)", str(rules()))  # fmt: skip
    assert len(paths) > 8
    for path in paths:
        assert re.fullmatch(r"/v2/models/[\w-]+|/v1/(images|chat|completions|responses)", path)


def test_every_route_to_a_model_is_behind_authentication() -> None:
    policy = one("envoy-gateway", "SecurityPolicy")
    covered = {(each["kind"], each["name"]) for each in policy["spec"]["targetRefs"]}
    assert covered == {(each["kind"], each["metadata"]["name"]) for each in routes()}
    assert policy["metadata"]["namespace"] == "vision"  # a policy covers its own namespace alone
    middleware = one("traefik", "Middleware")["metadata"]
    assert all(rule["middlewares"] == [{"name": middleware["name"]}] for rule in rules())
    assert middleware["namespace"] == one("traefik", "IngressRoute")["metadata"]["namespace"]


def test_the_gateway_names_the_caller_where_the_server_looks_and_no_client_can() -> None:
    server = of_kind(render(VALUES), "ServingRuntime")["predictors-flux"]["spec"]["containers"][0]
    said = {key: value for key, value in environment(server).items() if isinstance(value, str)}
    header = from_env(said).access.caller_header
    keys = one("envoy-gateway", "SecurityPolicy")["spec"]["apiKeyAuth"]
    removed = one("envoy-gateway", "ClientTrafficPolicy")["spec"]["headers"]["earlyRequestHeaders"]
    assert keys["forwardClientIDHeader"] == header
    assert removed == {"remove": [header]}
    assert keys["sanitize"] is True
    basic = one("traefik", "Middleware")["spec"]["basicAuth"]
    # Traefik writes the name as it is given, so that another spelling would be a second header
    assert basic["headerField"] == header.title()
    assert basic["removeHeader"] is True
    assert from_env(said).access.trusted_proxies


def test_every_host_is_in_the_certificate_that_its_listener_shows() -> None:
    hosts = {host for each in routes() for host in each["spec"]["hostnames"]}
    certificate = one("envoy-gateway", "Certificate")
    assert hosts == set(certificate["spec"]["dnsNames"])
    gateway = one("envoy-gateway", "Gateway")
    tls = {each["name"]: each.get("tls") for each in gateway["spec"]["listeners"]}
    secret = certificate["spec"]["secretName"]
    assert tls["https"]["certificateRefs"] == [{"name": secret}]
    assert certificate["metadata"]["namespace"] == gateway["metadata"]["namespace"]
    sections = {ref["sectionName"] for each in routes() for ref in each["spec"]["parentRefs"]}
    assert sections == {"https"}
    mine, route = one("traefik", "Certificate"), one("traefik", "IngressRoute")
    assert set(re.findall(r"Host\(`(.*?)`\)", str(rules()))) == set(mine["spec"]["dnsNames"])
    assert route["spec"]["tls"]["secretName"] == mine["spec"]["secretName"]
    assert (
        route["spec"]["tls"]["options"]["name"] == one("traefik", "TLSOption")["metadata"]["name"]
    )
    for name in FILES:
        issuer = one(name, "Issuer")["metadata"]
        asked = one(name, "Certificate")
        assert asked["spec"]["issuerRef"] == {"name": issuer["name"], "kind": "Issuer"}
        assert asked["metadata"]["namespace"] == issuer["namespace"]


def test_the_gateways_routes_wait_as_long_as_the_models() -> None:
    models = of_kind(render(VALUES), "InferenceService")
    longest = max(each["spec"]["predictor"]["timeout"] for each in models.values())
    for each in routes():
        for rule in each["spec"]["rules"]:
            if each["kind"] == "HTTPRoute":
                assert int(rule["timeouts"]["request"].removesuffix("s")) >= longest


def test_the_gateways_namespace_is_the_one_that_the_policies_let_in() -> None:
    label = {
        "kubernetes.io/metadata.name": one("envoy-gateway", "Gateway")["metadata"]["namespace"]
    }
    for each in of_kind(render(VALUES), "NetworkPolicy").values():
        peers = each["spec"]["ingress"][0]["from"]
        assert {"namespaceSelector": {"matchLabels": label}} in peers
