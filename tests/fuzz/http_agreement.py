"""Compares readers of one connection's bytes: for every message that this server accepts, others
that accept it see the same method, target, body and boundaries.

Refusing more than others is no disagreement. Both directions are compared: what a client sends, and
what nginx sends on after it has read that.
"""

from __future__ import annotations

import re
from itertools import pairwise
from random import Random

from tests.fuzz.http_readers import (
    Message,
    Nginx,
    NginxReading,
    Reading,
    read_by_connection,
    read_h11,
    read_ours,
)

_ABSOLUTE = re.compile(rb"https?://[^/?]*", re.IGNORECASE)


def pieces_of(raw: bytes) -> list[bytes]:
    """`raw` in pieces, which depend on it alone."""
    random = Random(raw)
    cuts = sorted(random.sample(range(len(raw) + 1), min(len(raw), random.choice((0, 1, 3, 10)))))
    return [raw[a:b] for a, b in pairwise([0, *cuts, len(raw)])]


async def disagreements(nginx: Nginx | None, raw: bytes) -> list[str]:
    """Everything that two readers see differently. Without nginx, h11 and our own readers only."""
    ours, pieces = read_ours([raw]), pieces_of(raw)
    found = []
    if read_ours(pieces) != ours:
        found.append(f"our parser reads otherwise in the pieces {pieces}")
    by_connection = await read_by_connection(pieces)
    if by_connection.messages != ours.messages:
        found.append(f"our connection sees {by_connection}, our parser {ours}")
    if (by_connection.end == "refused") != (ours.end == "refused"):
        found.append(f"our connection ends {by_connection.end!r}, our parser {ours.end!r}")
    found += beside(ours, with_paths(read_h11(raw)), "h11")
    if nginx is not None:
        is_buffered = len(raw) % 2 == 0
        reading = await nginx.read(raw, is_buffered=is_buffered)
        found += _beside_nginx(ours, reading)
        found += _behind_nginx(reading)
    return found


def with_paths(reading: Reading) -> Reading:
    """With targets as paths, also those that are whole addresses."""
    return Reading([m._replace(target=_path(m.target)) for m in reading.messages], reading.end)


def _path(target: bytes) -> bytes:
    rest = _ABSOLUTE.sub(b"", target, count=1) if target[:1] not in b"/*" else target
    path = rest if rest[:1] in (b"/", b"*") else b"/" + rest
    return path.removesuffix(b"?") if path.count(b"?") == 1 else path


def beside(ours: Reading, theirs: Reading, name: str) -> list[str]:
    found = []
    for i, (a, b) in enumerate(zip(ours.messages, theirs.messages, strict=False)):
        if a != b:
            found.append(f"message {i}: we read {a}, {name} reads {b}")
            return found
    mine, other = len(ours.messages), len(theirs.messages)
    # nginx takes the connection's end from any `Connection` with `close` in it
    may_end = ("refused", "closed") if name == "nginx" else ("refused",)
    if other < mine and theirs.end not in may_end:
        found.append(f"we read {mine} messages, {name} {other} and then {theirs.end}")
    if mine < other and ours.end not in ("refused", "closed"):
        found.append(f"{name} reads {other} messages, we {mine} and then {ours.end}")
    return found


def _beside_nginx(ours: Reading, nginx: NginxReading) -> list[str]:
    seen: list[Message] = []
    for one in nginx.forwarded:
        read = read_ours([one.raw])
        if not one.is_complete or len(read.messages) != 1:
            break
        seen.append(read.messages[0])
    end = "incomplete"
    if len(nginx.forwarded) > len(seen) and nginx.forwarded[len(seen)].is_complete:
        end = "refused"  # by us, behind nginx: targets and methods can't be compared
    elif any(status != 200 for status in nginx.statuses):
        end = "refused"
    elif nginx.is_closed:
        end = "closed"
    elif ours.end == "end" and len(seen) == len(ours.messages):
        end = "end"
    return beside(ours, Reading(seen, end), "nginx")


def _behind_nginx(nginx: NginxReading) -> list[str]:
    """A message that nginx sent on must be one to us, with nginx's body, or be refused."""
    found = []
    for one in nginx.forwarded:
        ours = read_ours([one.raw])
        if not one.is_complete:
            if ours.messages:
                found.append(f"nginx has not sent all of {one.raw!r}, but we read {ours}")
        elif ours.end == "refused" and not ours.messages:
            continue
        elif [m.body for m in ours.messages] != [one.body] or ours.end not in ("end", "closed"):
            found.append(f"nginx sends on {one.raw!r} with the body {one.body!r}, we read {ours}")
    return found
