"""When a server's process collects garbage: not while it imports, and never what it has loaded.

A full collection visits every object of torch, a third of a second each, and imports make hundreds
of thousands of objects that stay. Imports neither torch nor KServe.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collections_paused() -> Iterator[None]:
    """Collect nothing inside, and exclude all objects that there are at its end from collections.
    For imports, on the main thread; holds for all threads."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def freeze_loaded_objects() -> None:
    """Exclude all objects that are loaded by now from garbage collection. Any thread.

    A full collection holds the interpreter for a third of a second, in which no token is sent and
    no step is launched. Garbage of the imports, some 8,000 objects, stays.
    """
    gc.collect()  # or the present garbage would be kept for ever
    gc.freeze()
