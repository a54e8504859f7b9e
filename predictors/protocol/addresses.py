"""Addresses of callers: of the connection, or behind proxies from `X-Forwarded-For`; and those of
this machine alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from urllib.parse import unquote

from predictors.settings import InvalidSetting

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

FORWARDED_HEADER = "x-forwarded-for"
MAX_HOPS = 32
"""Proxies in a row that are followed."""
MAX_FORWARDED = 4096  # characters of the header, from its end, that are read
MAX_NETWORKS = 256
SHARED_PREFIX = 64  # bits of an IPv6 address that one subscriber commonly has to themselves

_KNOWN = 4096  # addresses whose parsed form is kept
_HOP = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9.]{7,15})(?::[0-9]{1,5})?")
_GRPC_PEER = re.compile(r"ipv[46]:(.{2,100}):[0-9]{1,5}")


def is_loopback(host: str) -> bool:
    """A name or address that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_networks(text: str) -> tuple[Network, ...]:
    """The networks of the setting `access.trusted_proxies`. Raises `InvalidSetting`."""
    entries = [entry for part in text.split(",") if (entry := part.strip())]
    if len(entries) > MAX_NETWORKS:
        raise InvalidSetting(
            f"PREDICTORS_ACCESS_TRUSTED_PROXIES has {len(entries)} networks; at most "
            f"{MAX_NETWORKS} are taken"
        )
    found = []
    for entry in entries:
        try:
            found.append(ipaddress.ip_network(entry))
        except ValueError as error:
            raise InvalidSetting(
                "PREDICTORS_ACCESS_TRUSTED_PROXIES must be addresses or networks such as "
                "10.0.0.0/8 (no bits beyond the prefix), comma-separated; "
                f"{entry[:64]!r} is none"
            ) from error
    return tuple(found)


@lru_cache(_KNOWN)
def parse_address(text: str) -> Address | None:
    """An address without zone; an IPv4 address in IPv6 form is the IPv4 address."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


@lru_cache(_KNOWN)
def account_of(text: str) -> str:
    """The name under which an address shares the engines: an IPv4 address, or the /64 network of an
    IPv6 address. Text that is no address stands for itself."""
    address = parse_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, SHARED_PREFIX), strict=False))
    return text if address is None else str(address)


def forwarded_address(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """The address of the caller behind proxies.

    Each proxy appends the address that it was called from, so that the list is read from its end,
    as long as the last address is a trusted one's. What stands before an entry that is no address,
    or before `MAX_HOPS` of them, is not believed.
    """
    address = parse_address(peer)
    if address is None:
        return peer
    hops = forwarded[-MAX_FORWARDED:].rsplit(",", MAX_HOPS)
    if len(forwarded) > MAX_FORWARDED or len(hops) > MAX_HOPS:
        hops = hops[1:]  # it may have been cut
    for hop in reversed(hops):
        if not is_trusted(address, trusted):
            break
        before = _parse_hop(hop.strip(" \t"))
        if before is None:
            break
        address = before
    return str(address)


def is_trusted(address: Address, trusted: Sequence[Network]) -> bool:
    return any(address in network for network in trusted)


def _parse_hop(text: str) -> Address | None:
    """`1.2.3.4`, `2001:db8::1`, and either with a port as `1.2.3.4:80` and `[2001:db8::1]:80`."""
    found = _HOP.fullmatch(text)
    if found is not None:
        return parse_address(found[1] or found[2])
    return parse_address(text) if len(text) <= 45 and "%" not in text else None


@lru_cache(_KNOWN)
def peer_address(peer: str) -> str:
    """The address in gRPC's name of a peer: `ipv4:10.0.0.1:5000`, `ipv6:%5B::1%5D:5000`. Empty for
    a socket without addresses."""
    found = _GRPC_PEER.fullmatch(unquote(peer))
    return found[1].strip("[]") if found else ""
