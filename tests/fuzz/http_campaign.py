"""The differential campaign: many generated connections, read by this server, h11 and nginx."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

from tests.fuzz.findings import Finding, minimised
from tests.fuzz.http_agreement import disagreements
from tests.fuzz.http_readers import NGINX, Nginx, nginx, read_ours
from tests.fuzz.http_streams import make_stream

WORKERS = 16
MAX_FINDINGS = 20
PART = "http"


def stream_of(seed: int, case: int) -> bytes:
    return make_stream(Random(f"{seed}:{PART}:{case}"))


def has_nginx() -> bool:
    return Path(NGINX).exists()


async def check(raw: bytes) -> list[str]:
    """All disagreements of one input, with an nginx of its own where it is installed."""
    if not has_nginx():
        return await disagreements(None, raw)
    with tempfile.TemporaryDirectory() as folder:
        async with nginx(Path(folder)) as running:
            return await disagreements(running, raw)


async def run(
    seed: int, cases: int, *, with_nginx: bool = True, most: int = MAX_FINDINGS
) -> tuple[list[Finding], Counter[str]]:
    """At most about `most` findings, and how many messages were accepted and connections ended
    how."""
    if not with_nginx:
        return await _run(None, seed, cases, most)
    with tempfile.TemporaryDirectory() as folder:
        async with nginx(Path(folder)) as running:
            return await _run(running, seed, cases, most)


async def _run(
    running: Nginx | None, seed: int, cases: int, most: int
) -> tuple[list[Finding], Counter[str]]:
    found: dict[int, tuple[bytes, str]] = {}
    counts: Counter[str] = Counter()
    numbers = iter(range(cases))

    async def work() -> None:
        for case in numbers:
            raw = stream_of(seed, case)
            ours = read_ours([raw])
            counts["messages"] += len(ours.messages)
            counts[ours.end] += 1
            differences = await disagreements(running, raw)
            if differences:
                found[case] = raw, differences[0]
            if len(found) >= most:
                return

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    findings = []
    for case, (raw, message) in sorted(found.items())[:most]:
        small = await _minimised(running, raw)
        findings.append(Finding(PART, "disagreement", seed, case, message, small))
    return findings, counts


async def _minimised(running: Nginx | None, raw: bytes) -> bytes:
    loop = asyncio.get_running_loop()

    def shows(less: bytes) -> bool:
        ask = asyncio.run_coroutine_threadsafe(disagreements(running, less), loop)
        return bool(ask.result())

    return await asyncio.to_thread(minimised, raw, shows)
