"""The training loop of every part: AdamW, warm-up and cosine decay, moving average, CUDA graphs.

On a GPU the modules compute in bf16 over fp32 master weights, and each kind of step is captured
once and replayed. On a CPU the same steps run eagerly in fp32. A step is a function without
arguments that draws its own batch and returns a loss.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Step = Callable[[], Tensor]
StepKind = tuple[int, int, float]
"""Padded prompt length, batch on a GPU, share of the steps."""
SAVE_EVERY = 60.0  # seconds; a run that is cut off loses no more
MAX_CPU_BATCH = 16


@dataclass(frozen=True)
class Plan:
    """Length and speed of a run. It ends after `steps` or `seconds`, whichever comes first."""

    steps: int
    seconds: float = math.inf
    rate: float = 1e-3
    warmup: int = 500
    decay: float = 0.01
    average: float = 0.999
    report_every: int = 500


class Trainer:
    """Master weights, optimiser and moving average of a few modules."""

    def __init__(self, modules: Sequence[nn.Module], plan: Plan, name: str) -> None:
        self.plan, self.name = plan, name
        self.live = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.gpu = self.live[0].is_cuda
        self.master = [p.detach().float().clone().requires_grad_() for p in self.live]
        self.mean = [p.detach().clone() for p in self.master]
        for parameter in self.live:
            parameter.data = parameter.data.to(torch.bfloat16 if self.gpu else torch.float32)
        for copy in self.master:
            copy.grad = torch.zeros_like(copy)
        device = self.live[0].device
        self.rate = torch.zeros((), device=device)
        self.total = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            self.master, lr=self.rate, betas=(0.9, 0.98), weight_decay=plan.decay,
            fused=self.gpu, capturable=self.gpu, foreach=False,
        )  # fmt: skip
        self.taken = 0

    def _step(self, step: Step) -> None:
        for parameter in self.live:
            parameter.grad = None
        loss = step()
        loss.backward()
        with torch.no_grad():
            pairs = [(m.grad, p.grad) for m, p in zip(self.master, self.live, strict=True)
                     if p.grad is not None]  # fmt: skip
            torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])
            nn.utils.clip_grad_norm_(self.master, 1.0, foreach=True)
            self.optimizer.step()
            torch._foreach_lerp_(self.mean, self.master, 1 - self.plan.average)
            torch._foreach_copy_(self.live, self.master)
            self.total += loss.detach()

    def _captured(self, step: Step) -> Callable[[], None]:
        if not self.gpu:
            return lambda: self._step(step)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step(step)
        torch.cuda.current_stream().wait_stream(side)
        for parameter in self.live:
            parameter.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step(step)
        return graph.replay

    def run(
        self,
        steps: Sequence[Step],
        choose: Callable[[], int] = lambda: 0,
        save: Callable[[], None] | None = None,
    ) -> None:
        """Train, and end with the average weights in the modules, in fp32.

        `choose` gives the index of the next step. `save` is called every `SAVE_EVERY` seconds.
        """
        plan, replays = self.plan, [self._captured(step) for step in steps]
        self.total.zero_()
        start, progress, since = time.monotonic(), 0.0, 0
        saved = start
        while progress < 1.0:
            progress = max(self.taken / plan.steps, (time.monotonic() - start) / plan.seconds)
            self.rate.fill_(self._rate(progress))
            replays[choose()]()
            self.taken += 1
            since += 1
            if self.taken == 2 * plan.warmup:
                torch._foreach_copy_(self.mean, self.master)
            if self.gpu and self.taken % 32 == 0:
                torch.cuda.synchronize()  # the clock must not run ahead of the device
            if self.taken % plan.report_every == 0 or progress >= 1.0:
                self._report(since, time.monotonic() - start)
                since = 0
            if save is not None and time.monotonic() - saved > SAVE_EVERY:
                self._save(save)
                saved = time.monotonic()
        self._load_average()

    def run_kinds(
        self,
        kinds: Sequence[StepKind],
        make_step: Callable[[int, int], Step],
        seed: int,
        save: Callable[[], None] | None = None,
    ) -> None:
        """Train on several kinds of step, drawn by their shares. `make_step` takes a prompt length
        and a batch size."""
        steps = [
            make_step(length, batch if self.gpu else min(batch, MAX_CPU_BATCH))
            for length, batch, _ in kinds
        ]
        shares = [share for _, _, share in kinds]
        rng = random.Random(seed)
        self.run(steps, lambda: rng.choices(range(len(steps)), shares)[0], save)

    def _rate(self, progress: float) -> float:
        warm = min(1.0, (self.taken + 1) / self.plan.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.plan.rate * warm * (0.01 + 0.99 * cosine)

    def _report(self, steps: int, spent: float) -> None:
        loss = self.total.item() / steps
        self.total.zero_()
        print(f"{self.name} step {self.taken} loss {loss:.5f} {spent:.0f} s", flush=True)
        if not math.isfinite(loss):
            raise RuntimeError(f"{self.name} diverged at step {self.taken}")

    @torch.no_grad()
    def _save(self, save: Callable[[], None]) -> None:
        """Call `save` while the modules hold the average weights."""
        torch._foreach_copy_(self.live, self.mean)
        save()
        torch._foreach_copy_(self.live, self.master)

    @torch.no_grad()
    def _load_average(self) -> None:
        for parameter, mean in zip(self.live, self.mean, strict=True):
            parameter.grad = None
            parameter.data = mean.clone()
