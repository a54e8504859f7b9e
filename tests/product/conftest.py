"""Both models behind one server, embedded checkpoints, short prompts, few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from predictors.__main__ import build
from predictors.protocol.tasks import make_workers
from predictors.settings import FluxSettings, Settings
from tests.http.echo import Running, serving, small_settings
from tests.product.brake import wait_answered

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
FOLDERS = {"flux": "shapes-flux", "qwen-vl": "shapes-qwen-vl"}
FLUX = FluxSettings(max_sequence_length=32, default_steps=4, max_side=256)
START_S = 150.0  # of both models, on a busy machine

Sample = Callable[..., float]


def product_settings() -> Settings:
    """Free ports, and pictures that take tens of milliseconds."""
    base = small_settings(server={"max_body_bytes": 8 * 2**20})
    return Settings(server=base.server, queue=base.queue, overload=base.overload, flux=FLUX)


@contextmanager
def served_models(
    settings: Settings | None = None, names: Sequence[str] = tuple(FOLDERS)
) -> Iterator[Running]:
    """A ready server in this process with the models `flux` and `qwen-vl`, or with one of them;
    small ones by default."""
    settings = settings or product_settings()
    workers = make_workers(settings.server)
    models = [build(name, CHECKPOINTS / FOLDERS[name], settings, workers) for name in names]
    with (
        closing(workers),
        serving(*models, settings=settings, wait_ready=False, workers=workers) as running,  # type: ignore[arg-type]
    ):
        for model in models:
            model.host.wait_ready(START_S)
        yield running


@pytest.fixture(scope="session")
def product() -> Iterator[Running]:
    """`served_models`, once for all tests of this folder."""
    with served_models() as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_is_left_to_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """Waits until the ends of requests are logged and counted: they belong to their own test."""
    yield
    if "product" in request.fixturenames:
        wait_answered(request.getfixturevalue("product"))


@pytest.fixture
def http(product: Running) -> Iterator[httpx.Client]:
    with product.client() as client:
        yield client


@pytest.fixture
def sample(http: httpx.Client) -> Sample:
    """`sample(name, model=..., ...)`: the present value of a series on /metrics, summed."""

    def read(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(http.get("/metrics").text)
        return sum(
            s.value
            for family in families
            for s in family.samples
            if s.name == name and labels.items() <= s.labels.items()
        )

    return read
