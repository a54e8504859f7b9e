"""The caller's address: of the connection, of `X-Forwarded-For`, of gRPC's name of the peer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.protocol.addresses import (
    MAX_FORWARDED,
    MAX_HOPS,
    MAX_NETWORKS,
    account_of,
    forwarded_address,
    is_trusted,
    parse_address,
    peer_address,
    read_networks,
)
from predictors.settings import InvalidSetting

TRUSTED = read_networks("10.0.0.0/8, fd00::/8")
PROXY = "10.0.0.9"

FORWARDED = [
    ("198.51.100.7", "203.0.113.5", "198.51.100.7"),  # a peer that is no proxy is the caller
    (PROXY, "", PROXY),
    (PROXY, "203.0.113.5", "203.0.113.5"),
    (PROXY, "1.1.1.1, 203.0.113.5", "203.0.113.5"),  # what the caller itself wrote comes first
    (PROXY, "203.0.113.5, 10.0.0.8", "203.0.113.5"),
    (PROXY, "203.0.113.5,10.0.0.8,\t10.0.0.7 ", "203.0.113.5"),
    (PROXY, "10.0.0.1, 10.0.0.2", "10.0.0.1"),
    (PROXY, "203.0.113.5:4711", "203.0.113.5"),
    (PROXY, "[2001:db8::5]:4711", "2001:db8::5"),
    (PROXY, "[2001:db8::5]", "2001:db8::5"),
    (PROXY, "2001:DB8::5", "2001:db8::5"),
    (PROXY, "::ffff:203.0.113.5", "203.0.113.5"),
    ("::ffff:10.0.0.9", "203.0.113.5", "203.0.113.5"),  # a socket of both families
    ("fd00::1", "203.0.113.5", "203.0.113.5"),
    (PROXY, "203.0.113.5, unknown", PROXY),
    (PROXY, "203.0.113.5, ", PROXY),
    (PROXY, "203.0.113.5, , 10.0.0.8", "10.0.0.8"),
    (PROXY, "203.0.113.5, 10.0.0.300", PROXY),
    (PROXY, "203.0.113.5, 010.0.0.8", PROXY),
    (PROXY, "203.0.113.5, 0x0a000008", PROXY),
    (PROXY, "203.0.113.5, 167772168", PROXY),
    (PROXY, "203.0.113.5, 10.0.0.8 10.0.0.7", PROXY),
    (PROXY, "203.0.113.5, [10.0.0.8", PROXY),
    (PROXY, "203.0.113.5, 10.0.0.8:", PROXY),
    (PROXY, "203.0.113.5, 10.0.0.8:999999", PROXY),
    (PROXY, "203.0.113.5, fe80::1%eth0", PROXY),
    (PROXY, "203.0.113.5; 10.0.0.8", PROXY),
    (PROXY, "\x00", PROXY),
    (PROXY, "\xa0203.0.113.5", PROXY),
    ("", "203.0.113.5", ""),
]


@pytest.mark.parametrize(("peer", "header", "expected"), FORWARDED)
def test_the_rightmost_address_that_is_no_proxy_is_the_callers(
    peer: str, header: str, expected: str
) -> None:
    assert forwarded_address(peer, header, TRUSTED) == expected


def test_a_list_of_hops_is_followed_to_a_bound_only() -> None:
    proxies = ["10.0.0.8"] * (MAX_HOPS - 1)
    assert forwarded_address(PROXY, ",".join(["1.2.3.4", *proxies]), TRUSTED) == "1.2.3.4"
    longer = ",".join(["1.2.3.4", "10.0.0.8", *proxies])
    assert forwarded_address(PROXY, longer, TRUSTED) == "10.0.0.8"


def test_a_header_that_is_cut_loses_the_entry_at_the_cut() -> None:
    spaces = " " * (MAX_FORWARDED - len("1.2.3.4,10.0.0.8"))
    assert forwarded_address(PROXY, f"1.2.3.4,{spaces}10.0.0.8", TRUSTED) == "1.2.3.4"
    # the first address would read as 1.2.3.4 if the cut part counted
    assert forwarded_address(PROXY, f"91.2.3.4,{spaces}10.0.0.8", TRUSTED) == "10.0.0.8"


@given(st.text(max_size=300), st.text(alphabet="0123456789.:,[] abcdef%", max_size=300))
def test_whatever_the_header_says_the_answer_is_an_address(any_text: str, near: str) -> None:
    for header in (any_text, near):
        found = forwarded_address(PROXY, header, TRUSTED)
        assert parse_address(found) is not None


@given(st.text(alphabet="0123456789.:,[] abcdef", max_size=200))
def test_what_a_caller_writes_never_moves_it_past_a_proxy_that_saw_it(header: str) -> None:
    assert forwarded_address(PROXY, f"{header},203.0.113.5", TRUSTED) == "203.0.113.5"


@pytest.mark.parametrize(
    "bad", ["10.0.0.1/8", "proxy.example", "10.0.0.0/33", "10.0.0.0/8;fd00::/8", "*"]
)
def test_a_setting_that_is_no_network_ends_the_start(bad: str) -> None:
    with pytest.raises(InvalidSetting, match="PREDICTORS_ACCESS_TRUSTED_PROXIES must be"):
        read_networks(f"10.0.0.0/8,{bad}")


def test_the_number_of_networks_is_bounded() -> None:
    assert len(read_networks(",".join(["10.0.0.1"] * MAX_NETWORKS))) == MAX_NETWORKS
    with pytest.raises(InvalidSetting, match="at most 256"):
        read_networks(",".join(["10.0.0.1"] * (MAX_NETWORKS + 1)))


def test_an_address_without_a_prefix_is_trusted_alone() -> None:
    networks = read_networks("192.0.2.1")
    found = [parse_address(text) for text in ("192.0.2.1", "192.0.2.2", "2001:db8::1")]
    assert [is_trusted(each, networks) for each in found if each] == [True, False, False]


ACCOUNTS = [
    ("192.0.2.1", "192.0.2.1"),
    ("::ffff:192.0.2.1", "192.0.2.1"),
    ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
    ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
    ("fe80::1%eth0", "fe80::/64"),
    ("", ""),
]


@pytest.mark.parametrize(("address", "account"), ACCOUNTS)
def test_ipv6_addresses_share_by_their_64_network(address: str, account: str) -> None:
    assert account_of(address) == account


PEERS = [
    ("ipv4:192.0.2.1:5000", "192.0.2.1"),
    ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1"),
    ("ipv6:[::1]:5000", "::1"),
    ("unix:/tmp/socket", ""),
    ("unix:", ""),
    ("", ""),
]


@pytest.mark.parametrize(("peer", "address"), PEERS)
def test_the_address_in_grpcs_name_of_a_peer(peer: str, address: str) -> None:
    assert peer_address(peer) == address
