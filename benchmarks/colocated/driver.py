"""Measures a colocated server that runs in the same process, from a thread beside it: first each
model alone, then a picture beside eight streaming clients for each policy.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
import urllib.request
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.colocated.crowd import crowd, times_between
from benchmarks.common.run import BenchmarkRun, rounded
from benchmarks.flux.cases import PROMPT
from benchmarks.qwen_vl.client import Share

FLUX, QWEN = "flux", "qwen-vl"
CLIENTS = 8
ALONE_S = 5.0
PICTURE_S = 300.0
READY_S = 240.0
LEAST_S = 12.0
"""A measurement begins only if so many seconds of the budget are left."""
POLICIES = ("none", "turns", "priority")
VARIANTS = ({"picture_share": 0.65}, {"picture_share": 0.9}, {"token_wait_ms": 15.0})
"""Of `turns`, beside its defaults."""


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes of the requests to the two models."""

    tiers: tuple[str, ...]
    side: int
    steps: int
    kinds: tuple[str, str]
    """Of the conversations: text, and with a picture."""
    tokens: int
    conversations: int
    pictures: int


FULL = Size(("lossless", "high", "turbo"), 1024, 28, ("text", "448x448"), 256, 500, 2)
TOY = Size(("lossless", "turbo"), 64, 6, ("text", "64x64"), 48, 400, 2)


class Driver:
    """Measures a server that runs in this process. `models` are filled by then. The server was
    started under `turns`, or under the only one of `policies`."""

    def __init__(
        self,
        port: int,
        size: Size,
        run: BenchmarkRun,
        models: dict[str, Any],
        policies: tuple[str, ...] = POLICIES,
    ) -> None:
        self._port, self._size, self._run, self._models = port, size, run, models
        self._policies = policies
        self._alone: dict[str, float] = {}
        self._first = 0

    def __call__(self) -> None:
        try:
            self._wait_until_ready()
            self._measure()
        except Exception as error:  # noqa: BLE001 - the process has to end, and say why
            self._run.found["failed"]["the server"] = repr(error)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def _wait_until_ready(self) -> None:
        url = f"http://127.0.0.1:{self._port}/v2/health/ready"
        began = time.monotonic()
        while time.monotonic() - began < READY_S:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    self._run.found["ready_s"] = round(time.monotonic() - began, 1)
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"not ready after {READY_S:.0f} s")

    def _measure(self) -> None:
        size, section = self._size, partial(self._run.section, least_s=LEAST_S)
        section("tokens alone", partial(self._tokens_alone, size.kinds[0]))
        section("pictures alone", self._pictures_alone)
        for policy in self._policies:
            for tier in size.tiers:
                section(f"{policy}, {tier}", partial(self._beside, policy, tier, {}))
        if "turns" in self._policies:
            self._measure_variants()
        self._run.section("after ready", self._late_work)

    def _measure_variants(self) -> None:
        """Of `turns`: prompts with pictures, and other settings."""
        size, section = self._size, partial(self._run.section, least_s=LEAST_S)
        tier = size.tiers[-2]
        section(
            f"turns, {tier}, prompts with pictures",
            partial(self._beside, "turns", tier, {}, size.kinds[1]),
        )
        for more in VARIANTS:
            named = ", ".join(f"{name} {value:g}" for name, value in more.items())
            section(f"turns, {tier}, {named}", partial(self._beside, "turns", tier, more))

    # -- what is measured ------------------------------------------------------------------------
    def _tokens_alone(self, kind: str) -> dict[str, Any]:
        self._use("turns" if "turns" in self._policies else self._policies[0], {})
        with crowd(self._share(kind)) as clients:
            began = time.monotonic()
            time.sleep(ALONE_S)
            span = (began, time.monotonic())
            return times_between(clients.stop(), [span])

    def _pictures_alone(self) -> dict[str, Any]:
        for tier in self._size.tiers:
            self._draw(tier)  # encodes the prompt, which is kept
            took = [self._draw(tier) for _ in range(self._size.pictures + 1)]
            self._alone[tier] = statistics.median(end - begin for begin, end in took)
        return dict(self._alone)

    def _beside(
        self, policy: str, tier: str, more: dict[str, float], kind: str = ""
    ) -> dict[str, Any]:
        self._use(policy, more)
        kind = kind or self._size.kinds[0]
        with crowd(self._share(kind)) as clients:
            spans = [self._draw(tier) for _ in range(self._size.pictures)]
            found = times_between(clients.stop(), spans)
        seconds = statistics.median(end - begin for begin, end in spans)
        ratio = seconds / self._alone[tier] if tier in self._alone else None
        found |= {"picture_s": seconds, "picture_ratio": ratio, "kind": kind}
        print(f"  {json.dumps(rounded(found))}", flush=True)
        return found

    def _late_work(self) -> dict[str, Any]:
        states = {name: model.host.describe() for name, model in self._models.items()}
        kinds = ("recompilations_after_ready", "captures_after_ready", "attention", "kv_pages")
        found = {n: {k: s[k] for k in kinds if k in s} for n, s in states.items()}
        return found | {"step_pieces": self._models[FLUX]._engine._turns.card.step_pieces}

    # -- means -----------------------------------------------------------------------------------
    def _use(self, policy: str, more: dict[str, float]) -> None:
        """Change the policy of the running server, while nothing is asked of it."""
        from predictors.compute.device.sharing import SharingPolicy
        from predictors.settings import SharingSettings

        engines = {name: model._engine for name, model in self._models.items()}
        card = engines[FLUX]._turns.card
        settings = replace(SharingSettings(policy=policy), **more)
        card.policy = SharingPolicy.of(settings, card.placement)

        def settle(engine: Any) -> None:
            if card.placement.is_cuda:
                import torch

                torch.cuda.synchronize()
            engine._turns.use_stream()

        for name, model in self._models.items():
            model.host.call(partial(settle, engines[name]))

    def _draw(self, tier: str) -> tuple[float, float]:
        """When the request was sent, and when its picture was there."""
        size = self._size
        body = {
            "model": FLUX, "prompt": PROMPT, "size": f"{size.side}x{size.side}", "seed": 7,
            "num_inference_steps": size.steps, "tier": tier, "response_format": "b64_json",
        }  # fmt: skip
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/v1/images/generations",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        began = time.monotonic()
        with urllib.request.urlopen(request, timeout=PICTURE_S) as answer:
            answer.read()
        return began, time.monotonic()

    def _share(self, kind: str) -> Share:
        """The work of clients whose conversations no other clients had."""
        self._first += 1_000_000
        size = self._size
        given = (CLIENTS, size.conversations, size.tokens, self._first)
        return Share(self._port, QWEN, kind, *given, step=1)
