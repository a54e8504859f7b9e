"""Callers, scrapers and strangers under the policies of profiles and cases: who reaches which port
of a model, and what a model reaches, computed by Cyclonus from the rendered objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.deploy.chart import Object, of_kind, render
from tests.deploy.reach import Peer, Traffic, reached

LAPTOP, EDGE, PRODUCTION = "values-laptop.yaml", "ci/edge-values.yaml", "values-production.yaml"
ON = "networkPolicy.enabled=true"
PORTS = (8080, 8081, 8082, 9090)
CALLS = {8080, 8081}
NEIGHBOUR = Peer("demo", {"app": "other"})
STRANGER = Peer("elsewhere", {"app": "other"})
PROMETHEUS = Peer("monitoring", {"app.kubernetes.io/name": "prometheus"})
GATEWAY = Peer("gateway", {"app": "envoy"})
DNS = Peer("kube-system", {"k8s-app": "kube-dns"})
OUTSIDE = Peer(ip="203.0.113.7")


def pod(model: str) -> Peer:
    """A model's pod, as KServe labels it."""
    return Peer("demo", {"serving.kserve.io/inferenceservice": model, "app": model})


def helms_pod(objects: list[Object], model: str) -> Peer:
    """The pod of `helm test`."""
    found = of_kind(objects, "Pod")[f"predictors-{model}-test"]["metadata"]
    return Peer(found["namespace"], found["labels"])


def let_in(objects: list[Object], *callers: Peer, model: str = "flux") -> list[set[int]]:
    """The ports of a model that each caller reaches."""
    tried = [Traffic(caller, pod(model), port) for caller in callers for port in PORTS]
    found = iter(reached(objects, tried))
    return [{port for port in PORTS if next(found)} for _ in callers]


def let_out(objects: list[Object], tried: Sequence[tuple[Peer, int, str]]) -> list[bool]:
    """For each peer with its port, True if a pod of FLUX reaches it."""
    return reached(objects, [Traffic(pod("flux"), *each) for each in tried])


def test_without_policies_everybody_reaches_every_port() -> None:
    """So that a checker that sees nothing would be seen."""
    assert let_in(render(LAPTOP), STRANGER, PROMETHEUS) == [set(PORTS)] * 2


def test_by_default_the_namespace_calls_prometheus_scrapes_and_nobody_else_comes_in() -> None:
    objects = render(LAPTOP, sets=(ON,))
    callers = (NEIGHBOUR, helms_pod(objects, "flux"), PROMETHEUS, STRANGER, GATEWAY, OUTSIDE)
    assert let_in(objects, *callers) == [CALLS, CALLS, {9090}, set(), set(), set()]


def test_behind_a_gateway_it_alone_calls_beside_helm_test() -> None:
    objects = render(EDGE)
    callers = (GATEWAY, helms_pod(objects, "flux"), NEIGHBOUR, PROMETHEUS, STRANGER, OUTSIDE)
    for model in ("flux", "qwen-vl"):
        found = let_in(objects, *callers, model=model)
        assert found == [CALLS, CALLS, set(), {9090}, set(), set()]


def test_in_production_gateway_and_namespace_call() -> None:
    envoy = Peer("envoy-gateway-system", {"app": "envoy"})
    callers = (envoy, NEIGHBOUR, PROMETHEUS, STRANGER, GATEWAY)
    assert let_in(render(PRODUCTION), *callers) == [CALLS, CALLS, {9090}, set(), set()]


@pytest.mark.parametrize(("port", "scraped"), [(-1, {8080}), (9090, {9090})])
def test_scrapers_reach_the_metrics_and_nothing_else_wherever_they_are(
    port: int, scraped: set[int]
) -> None:
    objects = render(EDGE, sets=(f"metrics.port={port}",))
    assert let_in(objects, PROMETHEUS) == [scraped]


def test_one_models_own_callers_reach_that_model_alone() -> None:
    own = 'models.flux.networkPolicy.ingressFrom=[{"podSelector":{"matchLabels":{"app":"other"}}}]'
    objects = render(EDGE, sets=(own,))
    assert let_in(objects, NEIGHBOUR) == [CALLS]
    assert let_in(objects, NEIGHBOUR, model="qwen-vl") == [set()]


OUT = [
    (DNS, 53, "UDP"), (DNS, 53, "TCP"), (DNS, 8080, "TCP"), (OUTSIDE, 443, "TCP"),
    (OUTSIDE, 6443, "TCP"), (OUTSIDE, 80, "TCP"), (pod("qwen-vl"), 8080, "TCP"),
]  # fmt: skip
NAMES = [True, True, False]
API = '{"ipBlock":{"cidr":"10.96.0.1/32"}}'


@pytest.mark.parametrize(
    ("sets", "outside"),
    [
        (("events.enabled=false",), [False, False, False, False]),
        # the API server's address is unknown to the chart, so that its ports are open everywhere
        ((), [True, True, False, False]),
        ((f"networkPolicy.apiServerTo=[{API}]",), [False, False, False, False]),
        (
            ("events.enabled=false", 'models.flux.storage.uri="hf://a/b"'),
            [True, False, False, False],
        ),
        (
            ("events.enabled=false", 'models.flux.storage.uri="s3://a/b"',
             "networkPolicy.storagePorts=[9000]"),
            [False, False, False, False],
        ),
    ],
    ids=["nothing", "events", "named", "hf", "s3"],
)  # fmt: skip
def test_a_model_reaches_names_and_what_it_needs_and_never_another_model(
    sets: tuple[str, ...], outside: list[bool]
) -> None:
    assert let_out(render(LAPTOP, sets=(ON, *sets)), OUT) == NAMES + outside


def test_a_named_api_server_and_an_object_stores_port_are_reached() -> None:
    named = render(LAPTOP, sets=(ON, f"networkPolicy.apiServerTo=[{API}]"))
    assert let_out(named, [(Peer(ip="10.96.0.1"), 443, "TCP")]) == [True]
    store = ('models.flux.storage.uri="s3://a/b"', "networkPolicy.storagePorts=[9000]",
             "events.enabled=false")  # fmt: skip
    assert let_out(render(LAPTOP, sets=(ON, *store)), [(OUTSIDE, 9000, "TCP")]) == [True]
