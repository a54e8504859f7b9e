"""The access policy of a port: which Origin and Host headers are allowed."""

from __future__ import annotations

from typing import Any

import pytest

from predictors.errors import Forbidden, Misdirected
from predictors.protocol.http.access import AccessPolicy, check_addresses, needs_key
from predictors.settings import AccessSettings, InvalidSetting, ServerSettings, Settings

INFER = "/v2/models/echo/infer"
LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"


def refusal_type(
    access: AccessPolicy, host: str | None, *origins: str, path: str = INFER
) -> type[Forbidden] | None:
    """The class of the error that refuses a request with these headers, or None."""
    raw = [(b"host", host.encode("latin-1"))] if host is not None else []
    raw += [(b"origin", origin.encode("latin-1")) for origin in origins]
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
    refusal = access.refusal(headers, raw, path)
    return None if refusal is None else type(refusal)


SAME = [
    ("models.example.com", "http://models.example.com"),
    ("models.example.com", "https://models.example.com"),
    ("models.example.com:443", "https://models.example.com"),
    ("models.example.com", "https://models.example.com:443"),
    ("models.example.com", "http://models.example.com:80"),
    ("models.example.com:80", "http://models.example.com"),
    ("models.example.com:", "http://models.example.com"),
    ("MODELS.example.COM:8080", "HTTP://models.EXAMPLE.com:8080"),
    ("models.example.com.:8080", "http://models.example.com:8080"),
    ("localhost:8080", "http://localhost:8080"),
    ("10.1.2.3:8080", "http://10.1.2.3:8080"),
    ("[::1]:8080", "http://[::1]:8080"),
    ("[0:0:0:0:0:0:0:1]:8080", "http://[::1]:8080"),
    ("[2001:DB8::1]", "https://[2001:db8::1]"),
]
FOREIGN = [
    ("localhost:8080", "https://evil.example"),
    ("localhost:8080", "http://localhost:3000"),
    ("localhost:8080", "http://localhost"),
    ("localhost:8080", "https://localhost"),
    ("localhost:8080", "http://127.0.0.1:8080"),
    ("models.example.com", "http://models.example.com:443"),
    ("models.example.com:80", "https://models.example.com"),
    ("models.example.com", "https://example.com"),
    ("example.com", "https://models.example.com"),
    ("example.com", "https://example.com.evil.example"),
    ("localhost:8080", "null"),
    ("localhost:8080", ""),
    ("localhost:8080", " "),
    ("localhost:8080", "localhost:8080"),
    ("localhost:8080", "//localhost:8080"),
    ("localhost:8080", "http:localhost:8080"),
    ("localhost:8080", "http://localhost:8080/"),
    ("localhost:8080", "http://localhost:8080 http://localhost:8080"),
    ("localhost:8080", "http://localhost:8080, http://localhost:8080"),
    ("localhost:8080", "http://user@localhost:8080"),
    ("localhost:8080", "http://localhost:8080@evil.example"),
    ("localhost:8080", "http://localhost:8080#evil.example"),
    ("localhost:8080", "http://localhost:808080"),
    ("localhost:8080", "http://localhost:+8080"),
    ("localhost:8080", "http://localhost:８080".encode().decode("latin-1")),
    ("localhost:8080", "file://"),
    ("localhost:8080", "file://localhost:8080"),
    ("localhost:8080", "chrome-extension://localhost:8080"),
    ("[::1]:8080", "http://::1:8080"),
    ("[::1]:8080", "http://[::2]:8080"),
    ("", "http://"),
    ("", "http://evil.example"),
    (None, "http://evil.example"),
    ("a@b", "http://a@b"),
]


@pytest.mark.parametrize(("host", "origin"), SAME)
def test_a_page_of_the_same_origin_is_allowed(host: str, origin: str) -> None:
    assert refusal_type(AccessPolicy(EVERYWHERE), host, origin) is None


@pytest.mark.parametrize(("host", "origin"), FOREIGN)
def test_a_page_of_another_origin_is_refused(host: str | None, origin: str) -> None:
    assert refusal_type(AccessPolicy(EVERYWHERE), host, origin) is Forbidden


def test_two_origin_headers_are_refused() -> None:
    same = "http://localhost"
    assert refusal_type(AccessPolicy(EVERYWHERE), "localhost", same, same) is Forbidden
    assert (
        refusal_type(AccessPolicy(EVERYWHERE), "localhost", same, "http://evil.example")
        is Forbidden
    )


OURS = [
    "localhost", "localhost:1", "LOCALHOST:8080", "localhost.", "localhost:", "127.0.0.1",
    "127.0.0.1:8080", "127.1.2.3:99", "[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]", "", None,
]  # fmt: skip
NOT_OURS = [
    "evil.example", "evil.example:8080", "localhost.evil.example", "evil.localhost.example",
    "127.0.0.1.evil.example", "127.0.0.1@evil.example", "localhost@evil.example", "0.0.0.0",
    "10.1.2.3", "[::2]", "::1", "[::1", "localhost:80:80", "localhost:http", "localhost/",
    "localhost evil.example", "localhost,evil.example", "x", "-", ".", "[]", "127.1", "2130706433",
    "a" * 300,
]  # fmt: skip


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_on_loopback_only_loopback_hosts_are_allowed(address: str) -> None:
    access = AccessPolicy(address)
    for _ in range(2):  # cached the second time
        assert [host for host in OURS if refusal_type(access, host) is not None] == []
        assert {refusal_type(access, host) for host in NOT_OURS} == {Misdirected}


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.1.2.3", "models.example.com"])
def test_off_loopback_any_host_is_allowed_by_default(address: str) -> None:
    access = AccessPolicy(address)
    assert {refusal_type(access, host) for host in (*OURS, *NOT_OURS)} == {None}


@pytest.mark.parametrize("address", [LOOPBACK, EVERYWHERE])
def test_the_setting_adds_allowed_hosts(address: str) -> None:
    access = AccessPolicy(
        address, "models.Example.com, *.svc.cluster.local,[2001:DB8::1] ,10.1.2.3"
    )
    good = (
        "models.example.com", "MODELS.example.com.:443", "flux.ns.svc.cluster.local",
        "a.svc.cluster.local:80", "[2001:db8:0::1]:8080", "10.1.2.3:8080", "localhost:8080",
    )  # fmt: skip
    bad = (
        "example.com", "a.models.example.com", "svc.cluster.local", "xsvc.cluster.local",
        "svc.cluster.local.evil.example", "10.1.2.4", "*.svc.cluster.local", "*",
    )  # fmt: skip
    assert {refusal_type(access, host) for host in good} == {None}
    assert {refusal_type(access, host) for host in bad} == {Misdirected}


def test_the_setting_may_allow_any_host_on_loopback() -> None:
    access = AccessPolicy(LOOPBACK, "*")
    assert refusal_type(access, "evil.example") is None
    assert refusal_type(access, "evil.example", "http://other.example") is Forbidden


@pytest.mark.parametrize(
    "setting", ["localhost:8080", "http://a", "a b", "*.*.a", "a.*", "*a", "a/b", "a;b", "ä"]
)
def test_an_invalid_setting_is_refused(setting: str) -> None:
    with pytest.raises(InvalidSetting, match="PREDICTORS_SERVER_ALLOWED_HOSTS must be names"):
        AccessPolicy(EVERYWHERE, f"good.example,{setting}")


OPEN = [
    "/", "/health", "/metrics", "/metrics/", "/v2/health/live", "/v2/health/ready",
    "/v2/health/ready/",
    "/v2/models/echo/ready", "/v2/models/echo/versions/1/ready", "/v2/models/a/b/ready",
    "/v2/models/a/b/versions/1/ready",
]  # fmt: skip
CLOSED = [
    "/v2", "/v2/", "/v2/models", "/v2/models/echo", "/v2/models/ready", "/v2/models//ready",
    "/v2/models/a/infer/ready", "/v2/health", "/v2/repository/index", INFER, "/v1/models",
    "/v2/repository/models/ready/unload", "/debug/engine", "/metricsx", "//metrics", "/ready",
    "/v2/models/echo/infer/ready/x",
]  # fmt: skip


def test_probes_and_metrics_are_exempt() -> None:
    for access in (AccessPolicy(LOOPBACK), AccessPolicy(LOOPBACK, pages=False)):
        for path in OPEN:
            assert refusal_type(access, "10.1.2.3:8080", "https://evil.example", path=path) is None
        for path in CLOSED:
            assert refusal_type(access, "10.1.2.3:8080", path=path) is Misdirected
            assert refusal_type(access, "localhost", "https://evil.example", path=path) is Forbidden


def test_without_pages_every_origin_is_refused() -> None:
    access = AccessPolicy(LOOPBACK, pages=False)
    assert refusal_type(access, "localhost:8080", "http://localhost:8080") is Forbidden
    assert refusal_type(access, "localhost:8080") is None


def test_the_cache_of_allowed_hosts_is_bounded() -> None:
    access = AccessPolicy(LOOPBACK)
    for port in range(2000):
        assert refusal_type(access, f"localhost:{port}") is None
    assert len(access._known) <= 64


# -- keys ------------------------------------------------------------------------------------------
KEYLESS = [
    "/", "/health", "/metrics", "/metrics/", "/v2/health/live", "/v2/health/ready",
    "/v2/health/ready/",
    "/v2/models/flux/ready", "/v2/models/org/qwen/ready", "/v2/models/flux/versions/1/ready",
    "/v1/images/files/abc.png", "/openai/v1/images/files/abc.png",
]  # fmt: skip
KEYED = [
    "/version", "/tokenize", "/detokenize", "/v1/responses", "/v1/responses/x", "/health/x",
    "/v1/messages", "/v1/messages/count_tokens",
    "/v2", "/v2/", "/v2/models", "/v2/models/flux", "/v2/models/flux/infer", "/v1/models",
    "/v2/models/flux/ready/infer", "/openapi.json", "/v2/repository/index", "//", "", "*",
    "/v1/chat/completions", "/openai/v1/chat/completions", "/metrics/x", "/v2/health",
    "/v2/health/live/x", "/v1/images/files", "/v1/images/files/a/b", "/v1/images/generations",
    "/x/v1/images/files/a", "/v2/health/ready\n", "/debug/engine",
]  # fmt: skip


@pytest.mark.parametrize("path", KEYLESS)
def test_probes_metrics_and_pictures_need_no_key(path: str) -> None:
    assert not needs_key(path)
    assert needs_key(path, asks_metrics=True) is path.startswith("/metrics")


@pytest.mark.parametrize("path", KEYED)
def test_every_other_path_needs_one(path: str) -> None:
    assert needs_key(path)


LOOPBACKS = ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST", "localhost."]
OTHERS = ["0.0.0.0", "::", "", "10.1.2.3", "192.168.0.1", "fe80::1", "myhost", "127.0.0.1.nip.io"]


def settings(host: str, **access: Any) -> Settings:
    admin = {name: access.pop(name) for name in ("admin_host", "admin_port") if name in access}
    own = ServerSettings(host=host, **admin)
    return Settings(server=own, access=AccessSettings(**access))


@pytest.mark.parametrize("host", LOOPBACKS)
def test_on_loopback_no_keys_are_needed(host: str) -> None:
    assert check_addresses(settings(host)) is False


@pytest.mark.parametrize("host", OTHERS)
def test_off_loopback_a_server_without_keys_does_not_start(host: str) -> None:
    with pytest.raises(InvalidSetting, match="PREDICTORS_ACCESS_OPEN=true") as caught:
        check_addresses(settings(host))
    for way in ("predictors keys add", "PREDICTORS_ACCESS_KEYS_FILE", "HOST=127.0.0.1"):
        assert way in caught.value.message
    assert check_addresses(settings(host, open=True)) is True
    assert check_addresses(settings(host, keys_file="keys.json")) is False
    assert check_addresses(settings(host, keys_file="keys.json", open=True)) is False


@pytest.mark.parametrize("host", OTHERS)
def test_an_admin_port_off_loopback_must_be_opened_even_beside_keys(host: str) -> None:
    admin = {"admin_host": host, "admin_port": 0}
    for keys in ("", "keys.json"):
        with pytest.raises(InvalidSetting, match="the admin port has no keys"):
            check_addresses(settings("127.0.0.1", keys_file=keys, **admin))
        assert check_addresses(settings("127.0.0.1", keys_file=keys, open=True, **admin)) is True
    assert check_addresses(settings("127.0.0.1", admin_host=host)) is False  # it is off
