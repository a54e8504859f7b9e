"""Fixtures of the chart's tests: rendering, and refused values."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.deploy import chart


@pytest.fixture
def render() -> Callable[..., list[chart.Object]]:
    """`render("values-laptop.yaml", sets=('models.flux.replicas.min=2',))` gives the objects."""
    return chart.render


@pytest.fixture
def refusal() -> Callable[..., str]:
    """As `render`, for values that must be refused: gives Helm's message."""
    return chart.refusal
