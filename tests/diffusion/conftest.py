"""One engine for all tests that leave nothing in it."""

from __future__ import annotations

import pytest

from tests.diffusion.driver import EngineDriver, open_driver
from tests.diffusion.threads import threads

__all__ = ["threads"]


@pytest.fixture(scope="session")
def driver() -> EngineDriver:
    """The embedded checkpoint with four slots."""
    return open_driver()
