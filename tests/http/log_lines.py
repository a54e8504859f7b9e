"""Collects the log lines of a server in this process, parsed from JSON."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from predictors.observe.logs import JsonFormatter
from tests.http.echo import PATIENCE_S

Line = dict[str, Any]


class Lines(logging.StreamHandler[io.StringIO]):
    """The log so far. `wait` waits for lines written after a response was sent."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.setFormatter(JsonFormatter())
        self._news = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._news:
            super().emit(record)
            self._news.notify_all()

    @property
    def text(self) -> str:
        """The whole log."""
        return self.stream.getvalue()

    def of(self, logger: str) -> list[Line]:
        """Parsed lines of `predictors.<logger>`. Checks that every line is a JSON object."""
        found = [json.loads(line) for line in self.text.splitlines()]
        return [line for line in found if line["logger"] == f"predictors.{logger}"]

    def wait(self, count: int, logger: str = "outcomes") -> list[Line]:
        """The same, after waiting until there are exactly `count`."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.of(logger)) >= count, PATIENCE_S)
        found = self.of(logger)
        assert len(found) == count, found
        return found


@contextmanager
def logged(level: int = logging.INFO) -> Iterator[Lines]:
    """Collect everything that is logged in the block."""
    root, lines = logging.getLogger(), Lines()
    before = root.level
    root.addHandler(lines)
    root.setLevel(level)
    try:
        yield lines
    finally:
        root.setLevel(before)
        root.removeHandler(lines)
