"""A change of a release of both models under load: everybody asks, by every protocol, until the new
pods serve and none of the old ones is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.e2e import asks
from tests.e2e.kube import Kube, until
from tests.e2e.traffic import Dial, Traffic, Window, over_http


def dials(kube: Kube) -> dict[str, Dial]:
    """Every way in which the installation is asked: by protocol and length of the work."""
    address, ports = kube.service("qwen-vl")
    return {
        "pictures": over_http(kube.url("flux"), asks.draw),
        "long pictures": over_http(kube.url("flux"), asks.draw_long),
        "words": over_http(kube.url("qwen-vl"), asks.write),
        "streams": over_http(kube.url("qwen-vl"), asks.stream),
        "calls": asks.over_grpc(f"{address}:{ports['h2c']}"),
    }


@contextmanager
def everybody_asks(kube: Kube, name: str, kept: Path) -> Iterator[list[Window]]:
    """Pooled and fresh connections to both models while the body runs; their windows.

    Long pictures keep a leaving pod at work, while pooled clients still hold connections to it.
    """
    callers: dict[str, Traffic] = {}
    with ExitStack() as stack:
        for kind, dial in dials(kube).items():
            for pooled in (True, False):
                title = f"{name}, {kind} {'pooled' if pooled else 'fresh'}"
                saved = kept / f"traffic {title}.jsonl"
                traffic = Traffic(dial, clients=1, pooled=pooled, pause_s=0.5, saved=saved)
                callers[title] = stack.enter_context(traffic)
        for each in callers.values():
            each.wait_answered(2)
            stack.callback(each.stop)  # all of them before the first is waited for
        yield [stack.enter_context(each.around(title, settle=2)) for title, each in callers.items()]


def rolled_out(kube: Kube, model: str, old: set[str]) -> None:
    """Return once one ready pod serves the model, and none of the `old` ones is left."""

    def probe() -> bool:
        pods = kube.ready_pods(model, 1, timeout_s=120)
        return not {pod["metadata"]["uid"] for pod in pods} & old

    until(f"{model} is rolled out", probe, 120)


def change(kube: Kube, name: str, kept: Path, work: Callable[[], object]) -> list[Window]:
    """Do `work`, which changes the release, under load; returns the outcomes."""
    old = {p["metadata"]["uid"] for model in asks.MODELS for p in kube.pods(model)}
    with everybody_asks(kube, name, kept) as windows:
        work()
        for model in asks.MODELS:
            rolled_out(kube, model, old)
    for window in windows:
        print(window)
    return windows
