"""A HorizontalPodAutoscaler of the chart, by CPU use as the real metrics-server measures it: load
makes a second pod, silence takes it away. Metrics of other kinds are looked at by the API server.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.e2e import asks
from tests.e2e.helm import CHART
from tests.e2e.kube import Kube, condition, run, until
from tests.e2e.one_model import MODEL, installed, values
from tests.e2e.scaling import load, reach
from tests.e2e.traffic import Traffic, over_http

SCALER = "one-predictors-flux"
OF_REQUEST = 200  # percent of 50m, what a pod of the suite requests: 0.1 cores


def scaling() -> object:
    """One pod to two, by CPU use."""
    asked = {
        "enabled": True,
        "class": "hpa",
        "targetCPUUtilizationPercentage": OF_REQUEST,
        "scaleDownSeconds": 20,  # a busy machine starves a pod for a moment
    }
    model = {"replicas": {"min": 1, "max": 2}, "autoscaling": asked}
    drain = {"preStopSeconds": 2, "graceSeconds": 90}
    return values(model=model, drain=drain, timeoutSeconds=90)


def is_measured(kube: Kube) -> bool:
    """True once the autoscaler reckons with a figure from metrics-server."""
    return condition(kube.get("hpa", SCALER), "ScalingActive") == "True"


def test_load_makes_a_second_pod_and_silence_takes_it_away(kube: Kube, kept: Path) -> None:
    took: dict[str, float] = {}
    with installed(kube, scaling()):
        kube.wait_served(MODEL)
        began = time.monotonic()
        until("metrics-server has measured the pod", lambda: is_measured(kube), 120)
        took["measured"] = time.monotonic() - began
        reach(kube, 1, 120)  # its start used the CPU, too
        seldom = over_http(kube.url(MODEL), asks.draw)
        saved = kept / "hpa.traffic.jsonl"
        with Traffic(seldom, clients=1, pooled=False, pause_s=2.0, saved=saved) as always:
            with load(kube, kept, 3, "hpa") as traffic:
                took["1 to 2"] = reach(kube, 2, 180)
            took["2 to 1"] = reach(kube, 1, 240)
            always.wait_answered(2)
        assert kube.list("scaledobjects") == []
        assert [each["metadata"]["name"] for each in kube.list("hpa")] == [SCALER]
    print({name: round(seconds, 1) for name, seconds in took.items()})
    (kept / "hpa.json").write_text(json.dumps(took))
    for each in (traffic, always):
        failed = [str(outcome) for outcome in each.outcomes if outcome.failure]
        assert not failed, failed[:5]


@pytest.mark.parametrize("case", ["hpa", "oci", "gpu-keda"])
def test_what_cannot_run_here_is_taken_by_the_api_server_and_kserves_webhooks(
    kube: Kube, case: str
) -> None:
    """External metrics without an adapter, image volumes that this containerd can't mount, GPUs."""
    words = ("-n", kube.namespace, "--kube-version", "1.34.0", "--skip-tests")
    case_values = str(CHART / "ci" / f"{case}-values.yaml")
    rendered = run("helm", "template", "one", str(CHART), *words, "-f", case_values)
    taken = kube("apply", "--dry-run=server", "-f", "-", stdin=rendered)
    assert "inferenceservice" in taken
    assert len(taken.splitlines()) == rendered.count("\nkind: ")
