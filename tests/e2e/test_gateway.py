"""docs/examples/edge/nginx.conf with a real nginx: TLS with a certificate of the test's authority,
passwords at the gateway, the caller's name at the server, and the server's own keys behind it.

In the order of the file: the last test gives the server keys.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from tests.e2e import gateway
from tests.e2e.asks import MODELS
from tests.e2e.authority import Authority, keys, users
from tests.e2e.gateway import Caller, password
from tests.e2e.helm import Release, small
from tests.e2e.kube import Kube, until

pytestmark = pytest.mark.full
VALUES = Path("ci/edge-values.yaml")
ANN = password("ann", "pass-of-ann")
KEY = "vpk_ann-key"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Of the gateway's certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def trusted(authority: Authority) -> Path:
    """The certificate of the authority that callers trust."""
    return authority.folder / "ca.crt"


@pytest.fixture(scope="module")
def release(
    kube: Kube,
    authority: Authority,
    trusted: Path,
    kept: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Release]:
    """The release of the example's values, and the gateway before it."""
    found = Release("edge", kube.namespace)
    found.install([VALUES], {**small(), "tests": {"enabled": False}})
    files = tmp_path_factory.mktemp("gateway")
    for made, name in zip(
        authority.certificate("gateway", *gateway.HOSTS), ("crt", "key"), strict=True
    ):
        shutil.copy(made, files / f"tls.{name}")
    (files / "users").write_text(users(ann="pass-of-ann"))
    try:
        kube.wait_served(*MODELS)
        for model in MODELS:
            kube.ready_pods(model, 1, 240)
        with gateway.running(kube, files, kept / "gateway.log"):
            Caller(trusted, ANN).wait_routed()
            yield found
    finally:
        found.uninstall(wait=False)


def callers(kube: Kube) -> set[str]:
    """Whom the servers' logs name as callers of what they did."""
    pods = [pod["metadata"]["name"] for model in MODELS for pod in kube.ready_pods(model, 1)]
    lines = [line for pod in pods for line in kube.log_lines(pod)]
    return {line["caller"] for line in lines if "caller" in line}


def test_each_protocol_is_answered_over_tls(release: Release, trusted: Path) -> None:
    began = time.monotonic()
    Caller(trusted, ANN).answers()
    print(f"REST, SSE and gRPC in {time.monotonic() - began:.1f} s")


def test_a_caller_that_does_not_trust_the_authority_sends_nothing(
    release: Release, tmp_path: Path
) -> None:
    stranger = Caller(Authority(tmp_path).folder / "ca.crt", ANN)
    with pytest.raises(httpx.ConnectError, match="certificate"):
        stranger.draw()
    assert stranger.infer() is grpc.StatusCode.UNAVAILABLE


def test_without_the_right_password_the_gateway_refuses_and_the_server_sees_nothing(
    kube: Kube, release: Release, trusted: Path
) -> None:
    for fields in (
        {},
        password("ann", "wrong"),
        password("bob", "pass-of-ann"),
        {"x-api-key": KEY},
    ):
        caller = Caller(trusted, fields)
        for reply in (caller.draw(), caller.stream()):
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"].startswith("Basic")
            assert "x-request-id" not in reply.headers  # the server's answers have one
        assert caller.infer() is grpc.StatusCode.UNAUTHENTICATED
    assert callers(kube) <= {"ann"}


def test_what_is_on_no_route_is_the_gateways_404(release: Release, trusted: Path) -> None:
    caller = Caller(trusted, ANN)
    for path in ("/metrics", "/v2/health/ready", "/v1/models", "/admin/loras", "/"):
        reply = caller.rest(path, None)
        assert (reply.status_code, "nginx" in reply.text) == (404, True), path


def test_the_server_learns_the_callers_name_from_the_gateway_alone(
    kube: Kube, release: Release, trusted: Path
) -> None:
    forged = {**ANN, "X-Consumer-Name": "mallory", "X-Forwarded-For": "192.0.2.1"}
    asks_it = Caller(trusted, forged)
    assert asks_it.draw().status_code == 200
    assert asks_it.infer() is grpc.StatusCode.OK
    until("the callers are logged", lambda: callers(kube), 30)
    assert callers(kube) == {"ann"}


def test_the_servers_own_keys_are_asked_behind_the_gateway(
    kube: Kube, release: Release, trusted: Path
) -> None:
    kube.apply(keys(KEY, name="server-keys"))
    given = {**small(), "apiKeys": {"secretName": "server-keys"}, "tests": {"enabled": False}}
    release.upgrade([VALUES], given)
    caller = Caller(trusted, ANN)
    for asked in (caller.draw, caller.stream):
        until("the new pod asks for a key", lambda ask=asked: ask().status_code == 401, 300)  # type: ignore[misc]
    for model in MODELS:
        kube.ready_pods(model, 1, 240)
    Caller(trusted, {**ANN, "x-api-key": KEY}).answers()
    for fields in (ANN, {**ANN, "x-api-key": "vpk_wrong"}):
        caller = Caller(trusted, fields)
        reply = caller.draw()
        assert reply.status_code == 401
        assert "x-request-id" in reply.headers
        assert "error" in reply.json()
        assert caller.infer() is grpc.StatusCode.UNAUTHENTICATED
    no_password = Caller(trusted, {"x-api-key": KEY}).draw()
    assert no_password.headers["www-authenticate"].startswith("Basic")
