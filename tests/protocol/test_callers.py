"""The name of a request's caller, without keys: a gateway's header, else the address."""

from __future__ import annotations

import pytest

from predictors.protocol.call import Call
from predictors.protocol.callers import MAX_CALLER, SECRET_HEADERS, CallerNames
from predictors.settings import AccessSettings, InvalidSetting


def named(peer: str, headers: dict[str, str], **settings: str) -> Call:
    call = Call(headers, protocol="v2_rest")
    CallerNames(AccessSettings(**settings)).name(call, peer)  # type: ignore[arg-type]
    return call


def test_without_settings_a_caller_is_the_address_of_its_connection() -> None:
    headers = {"x-forwarded-for": "203.0.113.5", "x-consumer": "ann"}
    call = named("192.0.2.1", headers)
    assert (call.caller, call.address, call.weight, call.priority) == ("192.0.2.1",) * 2 + (1.0, 0)


def test_ipv6_callers_are_told_apart_by_network_and_logged_by_address() -> None:
    call = named("2001:db8::5", {})
    assert (call.caller, call.address) == ("2001:db8::/64", "2001:db8::5")


def test_behind_a_trusted_proxy_the_address_is_the_forwarded_one() -> None:
    headers = {"x-forwarded-for": "1.1.1.1, 203.0.113.5"}
    behind = named("10.0.0.9", headers, trusted_proxies="10.0.0.0/8")
    direct = named("192.0.2.1", headers, trusted_proxies="10.0.0.0/8")
    assert (behind.caller, behind.address) == ("203.0.113.5", "203.0.113.5")
    assert (direct.caller, direct.address) == ("192.0.2.1", "192.0.2.1")


def test_a_gateways_header_names_the_caller() -> None:
    call = named("192.0.2.1", {"x-consumer": " ann@example.com "}, caller_header="X-Consumer")
    assert (call.caller, call.address) == ("ann@example.com", "192.0.2.1")


def test_where_proxies_are_listed_the_header_of_any_other_peer_is_not_believed() -> None:
    headers = {"x-consumer": "ann"}
    settings = {"caller_header": "x-consumer", "trusted_proxies": "10.0.0.0/8"}
    assert named("10.0.0.9", headers, **settings).caller == "ann"
    assert named("192.0.2.1", headers, **settings).caller == "192.0.2.1"
    assert named("", headers, **settings).caller == ""


@pytest.mark.parametrize(
    "value", ["", " ", "x" * (MAX_CALLER + 1), "a\tb", "a\x00b", "a\x7f", "zo\xeb", "\x1b[31mred"]
)
def test_a_header_that_is_no_plain_short_name_counts_as_missing(value: str) -> None:
    assert named("192.0.2.1", {"x-consumer": value}, caller_header="x-consumer").caller == (
        "192.0.2.1"
    )


@pytest.mark.parametrize("header", [*sorted(SECRET_HEADERS), "Authorization"])
def test_a_header_that_holds_secrets_can_name_nobody(header: str) -> None:
    with pytest.raises(InvalidSetting, match="secrets"):
        CallerNames(AccessSettings(caller_header=header))


@pytest.mark.parametrize("header", ["x consumer", "x-consumer:", "käufer", "a" * 65])
def test_what_is_no_header_name_ends_the_start(header: str) -> None:
    with pytest.raises(InvalidSetting, match="PREDICTORS_ACCESS_CALLER_HEADER must be"):
        CallerNames(AccessSettings(caller_header=header))


def test_a_bad_network_ends_the_start() -> None:
    with pytest.raises(InvalidSetting, match="TRUSTED_PROXIES"):
        CallerNames(AccessSettings(trusted_proxies="everywhere"))
