"""The weights of canaries: a route of the chart's own, since KServe 0.20 writes none."""

from __future__ import annotations

from typing import Any

from tests.deploy import chart

GATEWAY = ('gateway={"enabled":true,"parentRefs":[{"name":"door"}]}',)


def routes(*values: str, sets: tuple[str, ...] = ()) -> dict[str, Any]:
    return chart.of_kind(chart.render(*values, sets=sets), "HTTPRoute")


def test_the_weights_of_all_revisions_are_a_hundred_and_the_rest_is_the_stable_ones() -> None:
    (route,) = routes("ci/canary-values.yaml").values()
    grpc, rest = route["spec"]["rules"]
    assert "/grpc.health.v1.Health" in {each["path"]["value"] for each in grpc["matches"]}
    assert "matches" not in rest
    for rule, port in ((grpc, 8081), (rest, 80)):
        assert [(b["name"], b["port"], b["weight"]) for b in rule["backendRefs"]] == [
            ("flux-predictor", port, 75),
            ("flux-next-predictor", port, 20),
            ("flux-tuned-predictor", port, 5),
        ]
        assert rule["timeouts"] == {"request": "300s"}
    assert route["spec"]["hostnames"] == [f"flux.{chart.NAMESPACE}.example.com"]
    assert route["spec"]["parentRefs"][0]["name"] == "kserve-ingress-gateway"


def test_without_canaries_or_unasked_there_is_no_route_of_ours() -> None:
    assert routes("values-laptop.yaml", sets=GATEWAY) == {}
    assert routes("ci/canary-values.yaml", sets=("gateway.enabled=false",)) == {}


def test_a_route_without_a_gateway_is_refused_by_the_keys_name() -> None:
    said = chart.refusal("ci/canary-values.yaml", sets=("gateway.parentRefs=[]",))
    assert "gateway.parentRefs is []: it must not be empty" in said
