"""The real KEDA scales a model by the trigger that the chart ships: without requests there is no
pod, a held request wakes one, load makes three, less load one again, and silence none.

KEDA looks every 2 s (its default is 30) and waits 10 s before the last pod goes (300): a busy
machine leaves gaps between two requests. Prometheus is Debian's and runs beside the test. What
holds the first request is a stand-in (tests/e2e/standin.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e import asks, standin
from tests.e2e.kube import Kube, until
from tests.e2e.one_model import MODEL, installed, values
from tests.e2e.prometheus import PORT, Prometheus, scraping
from tests.e2e.scaling import keda_times, load, reach, replicas

TIMES = {"pollingInterval": 2, "cooldownPeriod": 10}
LOAD_CLIENTS = 5


def scaling() -> object:
    """No pod at least and three at most, one running or waiting request for each."""
    asked = {
        "enabled": True,
        "serverAddress": f"http://127.0.0.1:{PORT}",
        "threshold": 1,
        "wakeQuery": f"sum({standin.SERIES})",
        "scaleDownSeconds": 0,
    }
    model = {"replicas": {"min": 0, "max": 3}, "autoscaling": asked}
    # a request of 28 steps may wait a while where two cores draw five and start two pods
    drain = {"preStopSeconds": 2, "graceSeconds": 90}
    return values(model=model, drain=drain, timeoutSeconds=90)


@pytest.fixture
def quick_keda(cluster_up: None) -> Iterator[None]:
    """ScaledObjects get short times."""
    with keda_times(TIMES):
        yield


def wake(kube: Kube, prometheus: Prometheus) -> float:
    """Ask through the stand-in while there is no pod; seconds until the picture came."""
    assert replicas(kube)[0] == 0
    with standin.holding(kube.url(MODEL)) as address:
        until("the stand-in is scraped", lambda: prometheus.value(standin.SERIES) == 0, 20)
        began = time.monotonic()
        with httpx.Client(base_url=address, timeout=180, trust_env=False) as http:
            reply = http.post(f"/v2/models/{MODEL}/infer", json=asks.picture_body())
        asks.check_png(asks.png_of(asks.checked(reply)), 64, 64)
    return time.monotonic() - began


def test_load_scales_to_three_and_back_silence_to_none_and_a_held_request_wakes(
    kube: Kube, kept: Path, tmp_path: Path, quick_keda: None
) -> None:
    took: dict[str, float] = {}
    with (
        scraping(kube, {"standin": standin.ADDRESS}, tmp_path) as prometheus,
        installed(kube, scaling()),
    ):
        kube.wait(f"isvc/{MODEL}", "create", 20)
        scaled = until("KEDA's object", lambda: kube.get("scaledobject", f"{MODEL}-predictor"), 30)
        assert {key: scaled["spec"].get(key) for key in TIMES} == TIMES
        took["idle to 0"] = reach(kube, 0, 60)
        took["woken to the first picture"] = wake(kube, prometheus)

        with ExitStack() as until_one:
            with load(kube, kept, LOAD_CLIENTS) as traffic:
                took["1 to 3"] = reach(kube, 3, 180)
                # before the others end: without a request for a while there would be no pod
                less = until_one.enter_context(load(kube, kept, 1))
            took["3 to 1"] = reach(kube, 1, 180)
            less.wait_answered(2)
        took["1 to 0"] = reach(kube, 0, 60)
    print({name: round(seconds, 1) for name, seconds in took.items()})
    (kept / "autoscaling.json").write_text(json.dumps(took))
    for each in (traffic, less):
        failed = [str(outcome) for outcome in each.outcomes if outcome.failure]
        assert not failed, failed[:5]
