"""Mixed load for both models over all protocols, for as long as a block lasts: good requests, wrong
ones, callers that leave, deadlines that can't be met, and more than the queue takes.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count

from tests.http.echo import png
from tests.observe.clients import PATHS, Clients, Kind, chat, generations, picture, words

LATE_US = 30_000  # a deadline that a picture of 60 steps can't meet
LEFT_OR_OK = "cancelled or ok"
"""A caller that leaves without looking may have been answered in the same moment."""

PICTURE = "data:image/png;base64," + base64.b64encode(png(size=(56, 56))).decode()
LOOK = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": PICTURE}},
]


def leave(clients: Clients, turn: int) -> None:
    """A caller that goes away, wherever its request is by then."""
    kind = Kind("qwen-vl", "openai", "chat", LEFT_OR_OK)
    with clients.leaving_http(PATHS["chat"], kind, chat(200, stream=True)):
        threading.Event().wait(0.05 * (turn % 3))


ASKERS: tuple[Callable[[Clients, int], object], ...] = (
    lambda c, i: c.rest("flux", picture(3, seed=i)),
    lambda c, i: c.rest("flux", picture(2, seed=i)),
    lambda c, i: c.grpc("flux", picture(2 + i % 3)),
    lambda c, i: c.openai("images", generations(4)),
    lambda c, i: c.rest("qwen-vl", words(8)),
    lambda c, i: c.grpc("qwen-vl", words(12, prompt=f"Hello {i}")),
    lambda c, i: c.openai("chat", chat(6, LOOK)),
    lambda c, i: c.stream(chat(20)),
    lambda c, i: c.rest("flux", picture(60, timeout=LATE_US)),
    lambda c, i: c.rest("flux", picture(steps=10_000)),
    lambda c, i: c.grpc("qwen-vl", words(-1)),
    lambda c, i: c.openai("chat", chat(4, [{"type": "nonsense"}])),
    leave,
)


@contextmanager
def mixed_load(clients: Clients, count_of_each: int = 1) -> Iterator[None]:
    """All `ASKERS` ask without a pause; at the end each finishes what it asked.

    Raises what a client raised: an answer that says nothing, or none at all.
    """
    ending = threading.Event()

    def ask(asker: Callable[[Clients, int], object]) -> None:
        for turn in count():
            if ending.is_set():
                return
            asker(clients, turn)
            ending.wait(0.02)  # a wrong request is answered in no time: not only those

    with ThreadPoolExecutor(len(ASKERS) * count_of_each) as pool:
        tasks: list[Future[None]] = [
            pool.submit(ask, asker) for asker in ASKERS for _ in range(count_of_each)
        ]
        try:
            yield
        finally:
            ending.set()
    for task in tasks:
        task.result()
