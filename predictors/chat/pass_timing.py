"""Measures the seconds of an engine's warm passes by width, for `StepBudget`. Engine thread only,
between steps: passes are run on the slot and page of padding.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial

from predictors.chat.rows import warm_part, warm_rows
from predictors.chat.runner import ChatRunner
from predictors.chat.sampling import GREEDY
from predictors.chat.step_budget import PassTimes, StepBudget
from predictors.chat.vision.pictures import PictureRunner
from predictors.compute.device.pacing import DeviceSpan
from predictors.compute.device.placement import Placement
from predictors.serving.engine import is_out_of_memory

log = logging.getLogger(__name__)

REPLAYS = 4
"""Most runs of a pass. The shortest counts."""
PASS_S = 0.04
"""Most seconds of a pass's runs after the first."""


def measured_budget(
    name: str,
    steps: float,
    runner: ChatRunner,
    pictures: PictureRunner,
    placement: Placement,
    cold: Sequence[str] = (),
) -> StepBudget | None:
    """The budget of `steps` decode steps (`qwen_vl.prefill_steps`) for the model `name`, measured
    on its passes, of which those called `cold` could not be warmed.

    None, without a measurement, for 0 steps, where prompts do not share passes, where a pass is
    cold, and where the device has no memory for it. All but the first are told to the log.
    """
    if not steps:
        return None
    no_effect = f"{name}: qwen_vl.prefill_steps {steps:g} has no effect"
    if not runner.packs:
        why = "prompts share passes only on a GPU, and not with qwen_vl.deterministic"
        log.warning("%s: %s", no_effect, why)
        return None
    if cold:
        log.error("%s until the next start: %s could not be warmed", no_effect, ", ".join(cold))
        return None
    began = time.perf_counter()
    try:
        times = measure_passes(runner, pictures, placement)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the engine's tensors
        log.exception("%s until the next start: no memory to measure passes", no_effect)
        return None
    budget = StepBudget(times, steps)
    seconds, rows = time.perf_counter() - began, budget.describe()["rows"]
    log.info(
        "%s: passes were measured in %.2f s; most prompt rows by rows that decode: %s",
        name,
        seconds,
        rows,
    )
    return budget


def measure_passes(runner: ChatRunner, pictures: PictureRunner, placement: Placement) -> PassTimes:
    """Seconds of each decode width, each prompt width, apart and beside the widest decode step, and
    some sizes of pictures. All of their shapes must be warm."""
    limits, seconds = runner.limits, partial(_seconds, placement)
    decode, prompt = {}, {}
    for width in runner.decode_widths:
        rows = warm_rows(width, runner.padding, runner.vocab, GREEDY)
        decode[width] = seconds(partial(runner.decode, rows))
    for width in runner.chunk_widths:
        length = min(width, limits.max_context)
        part = warm_part(length, runner.padding, limits.pages_per_slot, GREEDY)
        prompt[width] = seconds(partial(runner.prefill, [part], width))
    mixed = {w: seconds(partial(runner.mixed.run_warm, w)) for w in runner.mixed.widths}
    sized = pictures.sized_pictures()
    vision = {n: seconds(partial(pictures.encode, picture)) for n, picture in sized.items()}
    return PassTimes.of(decode, prompt, vision, mixed)


def _seconds(placement: Placement, run: Callable[[], object]) -> float:
    """The shortest of some runs. Waits for the device after the first run and after the last."""
    first = DeviceSpan(placement)
    with first:
        run()
    first_s = first.seconds()
    more = sum(count * first_s <= PASS_S for count in range(1, REPLAYS))
    spans = [DeviceSpan(placement) for _ in range(more)]
    for span in spans:  # in a row: the device does not wait for the launch of a later one
        with span:
            run()
    return min([first_s, *(span.seconds() for span in spans)])
