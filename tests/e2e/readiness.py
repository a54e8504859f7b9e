"""When a model's pods were called ready, beside what the engine itself says about its warm-up.

Three witnesses: a watch of the pods, a watch of the InferenceServices, and somebody who asks the
readiness route of every pod all the time. The engine's clock is its log, to the millisecond. All
clocks are this machine's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx

from tests.e2e.kube import Kube, Watch, condition, name_of

ASK_EVERY_S = 0.05


@dataclass
class Witness:
    """The record of a start: watches, and every answer of the readiness routes."""

    pods: Watch
    services: Watch
    answers: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """By pod: Unix seconds when an answer arrived, and its status; 0 where no process listened."""


@contextmanager
def witnessing(kube: Kube) -> Iterator[Witness]:
    """Watch every pod and InferenceService of the namespace meanwhile."""
    with ExitStack() as stack:
        witness = Witness(
            stack.enter_context(kube.watch("pods")), stack.enter_context(kube.watch("isvc"))
        )
        over = threading.Event()
        thread = threading.Thread(target=_ask_pods, args=(witness, over), daemon=True)
        thread.start()
        stack.callback(thread.join, 10)
        stack.callback(over.set)
        yield witness


def _ask_pods(witness: Witness, over: threading.Event) -> None:
    with httpx.Client(timeout=0.5, trust_env=False) as http:
        while not over.wait(ASK_EVERY_S):
            for pod, model, address in _addresses(witness.pods):
                try:
                    status = http.get(f"http://{address}:8080/v2/models/{model}/ready").status_code
                except httpx.HTTPError:
                    status = 0
                witness.answers.setdefault(pod, []).append((time.time(), status))


def _addresses(pods: Watch) -> set[tuple[str, str, str]]:
    found = set()
    for seen in list(pods.seen):
        model = seen.thing["metadata"]["labels"].get("serving.kserve.io/inferenceservice")
        address = seen.thing["status"].get("podIP")
        if model and address:
            found.add((name_of(seen.thing), model, address))
    return found


@dataclass(frozen=True, slots=True)
class Start:
    """The times of one start in the engine's log, Unix seconds."""

    warming_s: float
    ready_s: float


def start_of(lines: list[dict[str, Any]], model: str) -> Start:
    """When warm-up began and ended; raises KeyError for a log that doesn't tell."""
    at_s = {
        line["message"]: datetime.fromisoformat(line["ts"]).timestamp()
        for line in reversed(lines)  # the first of two equal messages stays
    }
    return Start(at_s[f"{model} is warming up"], at_s[f"{model} is ready"])


def check_never_early(kube: Kube, witness: Witness, model: str) -> Start:
    """Raise AssertionError if a pod of `model`, or the model, was ready before its warm-up ended.

    Also when the witnesses saw nothing of the time before, which would prove nothing.
    """
    (pod,) = kube.pods(model)
    start = start_of(kube.log_lines(name_of(pod)), model)
    assert start.warming_s < start.ready_s
    seen = witness.pods.of(name_of(pod))
    ready = [each for each in seen if condition(each.thing, "Ready") == "True"]
    unready = [each for each in seen if condition(each.thing, "Ready") == "False"]
    assert ready, "the watch never saw it ready"
    assert any(each.at_s < start.ready_s for each in unready), "the watch began too late"
    assert all(each.at_s >= start.ready_s for each in ready), f"ready early: {start}"
    for each in ready:
        assert since(each.thing, "Ready") >= int(start.ready_s), f"ready early: {start}"
    served = [s for s in witness.services.of(model) if condition(s.thing, "Ready") == "True"]
    assert served
    assert all(each.at_s >= start.ready_s for each in served), f"served early: {start}"
    answers = witness.answers[name_of(pod)]
    assert any(at_s < start.ready_s for at_s, _ in answers), "nobody asked before"
    assert min(at_s for at_s, status in answers if status == 200) >= start.ready_s
    return start


def refusals(witness: Witness, pod: str, start: Start) -> int:
    """How often the readiness route said 503 while the engine warmed up."""
    answers = witness.answers[pod]
    return sum(s == 503 and start.warming_s <= at_s < start.ready_s for at_s, s in answers)


def since(thing: dict[str, Any], kind: str) -> float:
    """When a condition last changed, Unix seconds; Kubernetes keeps whole ones."""
    (found,) = [c for c in thing["status"]["conditions"] if c["type"] == kind]
    return datetime.fromisoformat(found["lastTransitionTime"]).timestamp()
