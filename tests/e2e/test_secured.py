"""An installation with API keys, TLS and certificates of clients: probes, scrapes and `helm test`
work, and a Secret that changes reaches the server without a restart and harms no open connection.

Any order but the last: that test changes the keys.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e import asks, prometheus
from tests.e2e.authority import Authority, keys, pair, secret
from tests.e2e.helm import Release
from tests.e2e.kube import Kube, restarts_of, until
from tests.e2e.one_model import MODEL, installed, values
from tests.e2e.traffic import Line, Traffic

SYNC_S = 150.0  # the kubelet looks at Secrets once a minute, the server at its files in seconds
OLD, NEW, STEADY = "vpk_old-key", "vpk_new-key", "vpk_steady-key"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Of servers and clients."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def client(authority: Authority) -> ssl.SSLContext:
    """Trusts the authority and presents a certificate of it; servers are called by address."""
    context = ssl.create_default_context(cafile=str(authority.folder / "ca.crt"))
    context.check_hostname = False
    context.load_cert_chain(*authority.certificate("client"))
    return context


@pytest.fixture(scope="module")
def release(kube: Kube, authority: Authority, client: ssl.SSLContext) -> Iterator[Release]:
    """The drawing model behind keys and TLS."""
    kube.apply(
        keys(OLD, STEADY),
        secret("tester", key=STEADY.encode()),
        pair("serving", authority.certificate("server")),
        pair("tester-certificate", authority.certificate("tester")),
        secret("clients", ca_crt=(authority.folder / "ca.crt").read_bytes()),
    )
    given = {
        **values(),
        "apiKeys": {"secretName": "callers"},
        "tls": {"secretName": "serving", "clientCaSecretName": "clients"},
        "tests": {
            "enabled": True,
            "apiKey": {"secretName": "tester"},
            "clientCertificateSecretName": "tester-certificate",
        },
    }
    with installed(kube, given, "secured") as found:
        kube.wait_served(MODEL)
        kube.ready_pods(MODEL, 1)
        yield found


def address(kube: Kube) -> str:
    """REST of the Service: port 80 speaks TLS."""
    host, ports = kube.service(MODEL)
    return f"https://{host}:{ports['https']}"


def status(kube: Kube, client: ssl.SSLContext, key: str) -> int:
    """The status of one request with this key, on a connection of its own."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{address(kube)}/v2/models/{MODEL}/infer"
    with httpx.Client(verify=client, trust_env=False, timeout=asks.PATIENCE_S) as http:
        return http.post(url, json=asks.picture_body(), headers=headers).status_code


def serial(kube: Kube, client: ssl.SSLContext) -> str:
    """The serial number of the certificate that a new connection gets."""
    with httpx.Client(verify=client, trust_env=False) as http:
        reply = http.get(f"{address(kube)}/v2/health/live")
        shown = reply.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
    return str(shown["serialNumber"])


def test_probes_pass_without_a_certificate_and_find_nothing_else(
    kube: Kube, release: Release
) -> None:
    (pod,) = kube.ready_pods(MODEL, 1)
    assert restarts_of(pod) == 0
    health = f"http://{pod['status']['podIP']}:8082"
    assert httpx.get(f"{health}/v2/models/{MODEL}/ready", trust_env=False).status_code == 200
    assert httpx.get(f"{health}/v2/models/{MODEL}", trust_env=False).status_code == 404
    assert httpx.get(f"{health}/metrics", trust_env=False).status_code == 404


def test_callers_need_a_certificate_and_a_key(
    kube: Kube, release: Release, client: ssl.SSLContext
) -> None:
    assert {key: status(kube, client, key) for key in ("", "wrong", OLD, STEADY, NEW)} == {
        "": 401, "wrong": 401, OLD: 200, STEADY: 200, NEW: 401,
    }  # fmt: skip
    nobody = ssl.create_default_context()
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    head = {"Authorization": f"Bearer {STEADY}"}
    with httpx.Client(verify=nobody, trust_env=False) as http, pytest.raises(httpx.TransportError):
        http.get(f"{address(kube)}/v2", headers=head)
    plain = httpx.get(f"{address(kube).replace('https', 'http')}/v2", headers=head, trust_env=False)
    assert plain.status_code == 400


def test_prometheus_scrapes_the_metrics_port_and_callers_see_no_metrics(
    kube: Kube, release: Release, client: ssl.SSLContext, tmp_path: Path
) -> None:
    with httpx.Client(verify=client, trust_env=False) as http:
        assert http.get(f"{address(kube)}/metrics").status_code == 404
    with prometheus.scraping(kube, {}, tmp_path) as server:
        query = f'predictors_queue_capacity{{model="{MODEL}"}}'
        until("Prometheus has scraped the pod", lambda: server.value(query) > 0, 30)


def test_helm_test_calls_with_the_key_and_the_certificate(kube: Kube, release: Release) -> None:
    said = release.test()
    assert "Phase:          Succeeded" in said, said


def test_changed_secrets_arrive_without_a_restart_and_harm_no_connection(
    kube: Kube, release: Release, authority: Authority, client: ssl.SSLContext, kept: Path
) -> None:
    @asynccontextmanager
    async def dial() -> AsyncIterator[Line]:
        headers = {"Authorization": f"Bearer {STEADY}"}
        limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
        async with httpx.AsyncClient(
            base_url=address(kube), verify=client, trust_env=False, limits=limits,
            headers=headers, timeout=asks.PATIENCE_S,
        ) as http:  # fmt: skip

            async def line(question: str) -> None:
                await asks.draw(http, question)

            yield line

    (before,) = kube.ready_pods(MODEL, 1)
    was = serial(kube, client)
    with Traffic(dial, clients=2, pause_s=0.5, saved=kept / "secured.traffic.jsonl") as traffic:
        traffic.wait_answered(2)
        with traffic.around("keys and certificate change") as window:
            began = time.monotonic()
            kube.apply(keys(NEW, STEADY), pair("serving", authority.certificate("server")))
            until("the new key is taken", lambda: status(kube, client, NEW) == 200, SYNC_S)
            until("the old key is refused", lambda: status(kube, client, OLD) == 401, SYNC_S)
            until("the new certificate is shown", lambda: serial(kube, client) != was, SYNC_S)
            print(f"in use after {time.monotonic() - began:.0f} s")
            traffic.wait_answered(2)
    window.assert_none_failed(at_least=4)
    print(window)
    (after,) = kube.ready_pods(MODEL, 1)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert restarts_of(after) == 0
