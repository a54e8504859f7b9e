"""A clock that advances by scripted seconds with each pass of a model, and by nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class TimedPasses:
    """Replaces the clock of `reader`, the module that measures steps."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        runner: type[Any],
        seconds: Mapping[str, float],
        reader: ModuleType,
        row_seconds: float = 0.0,
    ) -> None:
        """`seconds` of each method of `runner` that runs a pass, and more for each of its rows."""
        self._row_s = row_seconds
        self.busy_s = 0.0
        for name, took_s in seconds.items():
            patch.setattr(runner, name, self._timed(getattr(runner, name), took_s))
        patch.setattr(reader, "time", SimpleNamespace(perf_counter=lambda: self.busy_s))

    def _timed(self, run: Any, took_s: float) -> Any:
        def timed(*arguments: Any) -> Any:
            self.busy_s += took_s + (self._row_s and self._row_s * len(arguments[1]))
            return run(*arguments)

        return timed
