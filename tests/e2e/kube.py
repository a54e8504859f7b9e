"""One namespace of a cluster, through kubectl: apply, get, watch, wait, list all there is.

Nothing is tried again here but for `until`, which polls what is expected to become true; a command
that fails raises `CommandFailed`.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
Object = dict[str, Any]

POLL_S = 0.25  # each look is a process of its own: cheap enough for two cores
COMMAND_TIMEOUT_S = 60.0
NOT_OURS = ("events", "events.events.k8s.io")  # they expire by themselves


class CommandFailed(AssertionError):
    """A command ended with another code than 0; the message has what it printed."""


def run(*words: str, stdin: str = "", timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """The output of a command to stdout; raises `CommandFailed`, `subprocess.TimeoutExpired`."""
    done = subprocess.run(
        words, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode:
        shown = " ".join(words)
        raise CommandFailed(f"{shown}: exit code {done.returncode}\n{done.stderr}{done.stdout}")
    return done.stdout


def until(what: str, probe: Callable[[], T | None], timeout_s: float = 60.0) -> T:
    """The first true value of `probe`; raises AssertionError naming `what` when time is up.

    `CommandFailed` counts as not yet: what is asked for may not exist yet.
    """
    end = time.monotonic() + timeout_s
    last: object = None
    while True:
        try:
            last = probe()
            if last:
                return last
        except CommandFailed as error:
            last = error
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s:g} s: {what}; last seen: {last}")
        time.sleep(POLL_S)


def condition(thing: Object, kind: str) -> str:
    """The status of a condition: `True`, `False`, `Unknown`, or an empty string."""
    for each in thing.get("status", {}).get("conditions", []):
        if each["type"] == kind:
            return str(each["status"])
    return ""


def name_of(thing: Object) -> str:
    """`metadata.name`."""
    return str(thing["metadata"]["name"])


def restarts_of(pod: Object) -> int:
    """How often the containers of a pod were started again."""
    return sum(c["restartCount"] for c in pod.get("status", {}).get("containerStatuses", []))


@dataclass(frozen=True, slots=True)
class Seen:
    """One event of a watch: when it arrived (Unix seconds), what happened, and to what."""

    at_s: float
    kind: str
    thing: Object


@dataclass
class Watch:
    """The events that a watch has seen so far, in order. Filled by a thread of its own."""

    seen: list[Seen] = field(default_factory=list)

    def follow(self, stream: Iterator[str]) -> None:
        """Read events, one JSON object per line, until the stream ends."""
        for line in stream:
            event = json.loads(line)
            self.seen.append(Seen(time.time(), event["type"], event["object"]))

    def of(self, name: str) -> list[Seen]:
        """Only what happened to one object."""
        return [each for each in self.seen if name_of(each.thing) == name]


class Kube:
    """kubectl in one namespace. Any thread."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace

    def __call__(self, *words: str, stdin: str = "", timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """The output of `kubectl -n NAMESPACE WORDS...`."""
        return run("kubectl", "-n", self.namespace, *words, stdin=stdin, timeout_s=timeout_s)

    # -- objects ---------------------------------------------------------------------------------
    def get(self, kind: str, name: str) -> Object:
        """One object; raises `CommandFailed` when there is none."""
        found: Object = json.loads(self("get", kind, name, "-o", "json"))
        return found

    def list(self, kind: str, selector: str = "") -> list[Object]:
        """All objects of a kind, those with these labels if given."""
        chosen = ("-l", selector) if selector else ()
        found: list[Object] = json.loads(self("get", kind, *chosen, "-o", "json"))["items"]
        return found

    def apply(self, *objects: Mapping[str, Any], timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Create or change objects, server side."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "--server-side", "-f", "-", stdin=json.dumps(listed), timeout_s=timeout_s)

    def snapshot(self) -> set[str]:
        """`kind/name` of every object in the namespace, but for Kubernetes' events."""
        kinds = [
            kind
            for kind in self("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
            if kind not in NOT_OURS and not kind.endswith("metrics.k8s.io")
        ]
        return set(self("get", ",".join(kinds), "-o", "name", "--ignore-not-found").split())

    # -- pods ------------------------------------------------------------------------------------
    def pods(self, model: str) -> list[Object]:
        """The pods of an InferenceService that are not being deleted, oldest first."""
        found = self.list("pods", f"serving.kserve.io/inferenceservice={model}")
        staying = [p for p in found if "deletionTimestamp" not in p["metadata"]]
        return sorted(staying, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def ready_pods(self, model: str, count: int, timeout_s: float = 120.0) -> list[Object]:
        """Exactly `count` pods of a model, all ready, and none that is going."""

        def probe() -> list[Object] | None:
            found = self.list("pods", f"serving.kserve.io/inferenceservice={model}")
            settled = all("deletionTimestamp" not in p["metadata"] for p in found)
            ready = [p for p in found if condition(p, "Ready") == "True"]
            return ready if settled and len(ready) == len(found) == count else None

        return until(f"{count} ready pods of {model}", probe, timeout_s)

    def exec(self, pod: str, *argv: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """The output of a command in the pod's first container."""
        return self("exec", pod, "--", *argv, timeout_s=timeout_s)

    def log_lines(self, pod: str, *words: str) -> list[Object]:
        """The JSON lines of a pod's log; `words` go to `kubectl logs`."""
        lines = self("logs", pod, "--all-containers=false", *words).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    # -- waiting ---------------------------------------------------------------------------------
    def wait(self, what: str, for_: str, timeout_s: float = 120.0) -> None:
        """`kubectl wait --for=FOR WHAT`."""
        words = ("wait", f"--for={for_}", f"--timeout={timeout_s:g}s", *what.split())
        self(*words, timeout_s=timeout_s + COMMAND_TIMEOUT_S)

    def wait_served(self, *models: str, timeout_s: float = 180.0) -> None:
        """Return once these InferenceServices exist and are Ready."""
        for model in models:
            until(f"isvc {model} exists", lambda m=model: self.get("isvc", m), 30.0)  # type: ignore[misc]
        self.wait(
            " ".join(f"isvc/{model}" for model in models), "condition=Ready", timeout_s=timeout_s
        )

    @contextmanager
    def watch(self, kind: str, selector: str = "") -> Iterator[Watch]:
        """A watch on objects of a kind, those first that exist already; over at the end."""
        chosen = ("-l", selector) if selector else ()
        words = ["kubectl", "-n", self.namespace, "get", kind, *chosen, "-o", "json"]
        process = subprocess.Popen(
            [*words, "--watch", "--output-watch-events"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        watch = Watch()
        thread = threading.Thread(target=watch.follow, args=(process.stdout,), daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            process.terminate()
            process.wait(10)
            thread.join(10)
            process.stdout.close()

    # -- the way in ------------------------------------------------------------------------------
    def service(self, model: str) -> tuple[str, dict[str, int]]:
        """The cluster address of a predictor's Service, and its ports by name."""
        spec = self.get("service", f"{model}-predictor")["spec"]
        return spec["clusterIP"], {p.get("name", ""): p["port"] for p in spec["ports"]}

    def url(self, model: str) -> str:
        """Where REST of a model is answered: the Service's cluster address."""
        address, ports = self.service(model)
        plain = [port for name, port in ports.items() if "h2c" not in name and "grpc" not in name]
        return f"http://{address}:{plain[0]}"

    # -- leftovers -------------------------------------------------------------------------------
    def report(self) -> str:
        """The evidence for the cause of a failure: pods, events, logs."""
        parts: Sequence[tuple[str, ...]] = (
            ("get", "all,isvc,servingruntime,pvc,pdb", "-o", "wide"),
            ("describe", "isvc,pods"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            (
                "logs",
                "--tail=200",
                "--prefix",
                "-l",
                "component=predictor",
                "--ignore-errors",
                "--all-containers",
            ),
        )
        shown = []
        for words in parts:
            try:
                shown.append(self(*words))
            except CommandFailed as error:
                shown.append(str(error))
        return "\n\n".join(shown)
