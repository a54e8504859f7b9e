"""The server of chats over a device that is a clock: every pass of the decoder takes the time it
took on an H200 with Qwen2.5-VL-3B, and computes nothing. All that the host does is real.

    python -m benchmarks.serving.clocked_server PORT FOLDER [OUT]

It starts `predictors serve` with the runner of a GPU, whose graphs, copies and events are replaced:
a graph's replay moves the time at which the device is done, an event waits for that time, and
pinned memory is memory. What a launch costs the host under CUDA is not in it. With OUT the
phases of the steps are timed, as by `benchmarks.serving.step_probe`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.prefill_steps import pass_times
from benchmarks.serving.step_probe import install
from predictors.chat import choosing, rehearsal, step_inputs
from predictors.chat import engine as engines
from predictors.chat.limits import EngineLimits, decode_widths, packed_widths
from predictors.chat.runner import ChatRunner
from predictors.chat.scheduling import PACK_PROMPTS
from predictors.chat.step_budget import StepBudget
from predictors.compute.device.placement import HostCopy, LaunchMark, Placement

CHUNK = 1536
"""Rows of the widest pass, as on a GPU."""
CHOICE_S = 30e-6
TOKENS = range(300, 400)
"""That answers are made of."""


class DeviceClock:
    """When the device is done with what was launched, in seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.done_at = 0.0

    def launch(self, seconds: float) -> None:
        self.done_at = max(self.done_at, time.perf_counter()) + seconds


class ClockedPass:
    """In the place of a captured pass: takes its inputs, and the device's time."""

    def __init__(self, clock: DeviceClock, seconds: float, inputs: Sequence[Tensor], made: Tensor):
        self.inputs = tuple(inputs)
        self._clock, self._seconds, self._made = clock, seconds, made

    def __call__(self, *inputs: Tensor) -> Tensor:
        for ours, theirs in zip(self.inputs, inputs, strict=True):
            if theirs is not ours:
                ours.copy_(theirs)
        self._clock.launch(self._seconds)
        return self._made


class ClockedGraphs:
    """In the place of an engine's graphs."""

    def __init__(self, clock: DeviceClock, vocab: int) -> None:
        self._clock, self._times = clock, pass_times("mixed")
        self._logits = torch.zeros(max(decode_widths(64)) + PACK_PROMPTS, vocab)

    def capture(
        self,
        function: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        name: str = "pass",
        *,
        in_place: bool = False,
    ) -> ClockedPass:
        kind, _, width = name.rpartition(" ")
        seconds, made = CHOICE_S, torch.randint(TOKENS[0], TOKENS[-1], (int(width),))
        if kind == "decode":
            seconds, made = self._times.decode_s(int(width)), self._logits
        elif kind == "mixed":
            seconds, made = self._times.mixed[int(width)], self._logits
        elif kind == "prefill":
            seconds, made = self._times.prompt_s(int(width)), self._logits
        return ClockedPass(self._clock, seconds, inputs, made)


class ClockedEvent:
    """The end of what was launched before it was made."""

    def __init__(self, clock: DeviceClock) -> None:
        self._due = clock.done_at

    def query(self) -> bool:
        return time.perf_counter() >= self._due

    def synchronize(self) -> None:
        """Sleeps as long as the device would still compute: the wait is what is simulated."""
        time.sleep(max(0.0, self._due - time.perf_counter()))


class ClockedPlacement(Placement):
    """The CPU, taken for a GPU."""

    @property
    def is_cuda(self) -> bool:
        return True


class ClockedRunner(ChatRunner):
    """A GPU's runner. Its device is the clock."""

    def __init__(self, decoder: Any, limits: EngineLimits, placement: Any, *rest: Any) -> None:
        self._clock = DeviceClock()
        most = decode_widths(limits.slots)
        prompts = packed_widths(CHUNK)
        own = replace(limits, decode_widths=most, chunk_widths=prompts, mixed_widths=prompts)
        graphs = ClockedGraphs(self._clock, decoder.shape.vocab)
        on_gpu = ClockedPlacement(placement.device, placement.dtype, "off")
        super().__init__(decoder, own, on_gpu, cast(Any, graphs), *rest[1:])

    def copy(self, tokens: Tensor) -> HostCopy:
        host = torch.empty(tokens.shape, dtype=tokens.dtype)
        host.copy_(tokens)
        return HostCopy(host, cast(Any, ClockedEvent(self._clock)))

    def mark(self) -> LaunchMark:
        return LaunchMark(cast(Any, ClockedEvent(self._clock)))


def _memory(shape: Sequence[int], dtype: torch.dtype, _placement: Placement) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _budget(_model: str, steps: float, *_: object) -> StepBudget | None:
    """Of the times that the clock goes by."""
    return StepBudget(pass_times("mixed"), steps) if steps else None


def _not_rehearsed(*_: object) -> None:
    """Its checks of logits would fail."""


def replace_device() -> None:
    """Let engines of this process have the clock for a device."""
    for module in (choosing, step_inputs):
        vars(module)["staging_memory"] = _memory
    torch.Tensor.pin_memory = torch.Tensor.clone  # type: ignore[method-assign, assignment]
    vars(engines)["ChatRunner"] = ClockedRunner
    vars(engines)["measured_budget"] = _budget
    rehearsal.Rehearsal.run = _not_rehearsed  # type: ignore[method-assign, assignment]


def main() -> int:
    port, folder, *out = sys.argv[1:]
    from predictors.__main__ import main as run

    replace_device()
    write = install(ClockedRunner, ClockedPass) if out else None
    status = run(["serve", "--port", port, "--grpc-port", "-1", "--model", f"qwen-vl={folder}"])
    if write is not None:
        write(Path(out[0]))
    return status


if __name__ == "__main__":
    sys.exit(main())
