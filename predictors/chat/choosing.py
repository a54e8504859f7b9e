"""Launches the choice of tokens after a pass: plain, or with controls if a row has any.

On a GPU each number of rows has its own graph of each sampler; elsewhere a sampler is a plain or
compiled function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from predictors.chat.choices import Choices, TokenChoice, pack_choices, pack_controlled
from predictors.chat.decoder.control_state import ControlState
from predictors.chat.decoder.passes import DecoderPasses
from predictors.chat.decoder.state import SlotState
from predictors.chat.limits import EngineLimits
from predictors.chat.logit_changes import CONTROLLED, TokenMasks, num_words
from predictors.chat.promised import PassKind, PromisedPass
from predictors.chat.request import Controls
from predictors.chat.rows import warm_rows
from predictors.chat.sampling import GREEDY, ONE_PER_SAMPLER, SAMPLERS
from predictors.chat.scheduling import PACK_PROMPTS
from predictors.chat.scores import score_tokens
from predictors.chat.step_inputs import StepInputs
from predictors.compute.compile.compiling import compiled
from predictors.compute.device.graphs import Captured, Graphs
from predictors.compute.device.placement import (
    HostCopy,
    Placement,
    staging_memory,
    to_device,
    to_host_async,
)

Scores = tuple[Tensor, Tensor]
"""The integers and floats of `score_tokens`."""
NO_CHOICES = Choices.of([], 1)
SOME_CONTROLS = Controls(logit_bias=((0, 0.0),), logprobs=0)


@dataclass(frozen=True, slots=True)
class PassChoice:
    """The tokens (rows,) int64 of a pass and, if a row asks for logprobs, the scores of its rows on
    their way to the host."""

    tokens: Tensor
    scores: tuple[HostCopy, HostCopy] | None = None


class TokenChooser:
    """Chooses tokens of the rows of a pass from its logits. Engine thread only; all methods launch
    work and return at once."""

    def __init__(
        self,
        passes: DecoderPasses,
        state: SlotState,
        limits: EngineLimits,
        placement: Placement,
        graphs: Graphs,
        end_tokens: Collection[int],
    ) -> None:
        """`end_tokens` are the model's."""
        self._passes = passes
        self._state = state
        self._vocab = state.seen.shape[1]
        self._placement = placement
        self._move = partial(to_device, placement=placement)
        self._graphs = graphs
        prompts = [2**i for i in range(PACK_PROMPTS.bit_length())] if placement.is_cuda else [1]
        self.widths = tuple(sorted({*limits.decode_widths, *prompts}))
        """Numbers of rows that a GPU chooses for, ascending: those that are warm."""
        self.inputs = StepInputs(self.widths, self._vocab, state.padding, placement)
        """Read by the graphs of plain choices, and of plain decode steps."""
        self._controls = ControlState(state, self.widths[-1], end_tokens)
        self._captured: dict[tuple[str, int], Captured[Tensor]] = {}
        self._captured_scores: dict[int, Captured[Scores]] = {}
        self._plain = {
            name: partial(state.choose_tokens, compiled(run, placement, f"qwen_vl.{name}"))
            for name, run in SAMPLERS.items()
        }
        self._controlled = {
            name: partial(
                self._controls.choose_tokens,
                compiled(run, placement, f"qwen_vl.controlled_{name}"),
            )
            for name, run in CONTROLLED.items()
        }

    def reset(self, slot: int, controls: Controls) -> None:
        """Make `slot` ready for an answer with these controls. May be repeated."""
        self._controls.reset(slot, controls, self._move)

    def choose(self, logits: Tensor, choices: Choices) -> Tensor:
        """The next token (len(choices),) int64 for the first rows of `logits` (rows, vocab)."""
        if not len(choices):
            return torch.empty(0, dtype=torch.int64, device=logits.device)
        sampler, width = choices.sampler(self._vocab), self._width(logits, choices)
        ints, floats = pack_choices(choices, width, self._vocab, self._state.padding)
        if self._placement.is_cuda:
            tokens = self._captured[sampler, width](ints.pin_memory(), floats.pin_memory())
            return tokens[: len(choices)].clone()  # the next pass uses this memory
        return self._plain[sampler](logits, ints, floats)[: len(choices)]

    def choose_placed(self, choices: Choices, width: int) -> Tensor:
        """As `choose`, on a GPU: from the logits of the last pass, for choices that were put into
        `inputs`. The tokens are valid until the next pass or choice is launched."""
        run = self._captured[choices.sampler(self._vocab), width]
        tokens = run(*run.inputs)
        return tokens if len(choices) == width else tokens[: len(choices)]

    def choose_controlled(
        self, logits: Tensor, choices: Choices, masks: TokenMasks | None
    ) -> PassChoice:
        """As `choose`, with the rows' controls, masks and logprobs. Rows without any of these get
        the tokens that `choose` would give them."""
        if not len(choices):
            return PassChoice(self.choose(logits, choices))
        width = self._width(logits, choices)
        tokens = self._tokens(logits, choices, width, masks).clone()  # as in `choose`
        scores = None
        if choices.scored:
            ints, floats = self._score(logits, tokens, choices)
            scores = to_host_async(ints), to_host_async(floats)
        return PassChoice(tokens[: len(choices)], scores)

    def _width(self, logits: Tensor, choices: Choices) -> int:
        if not self._placement.is_cuda:
            return len(logits)
        return next(width for width in self.widths if width >= len(choices))

    def _tokens(
        self, logits: Tensor, choices: Choices, width: int, masks: TokenMasks | None
    ) -> Tensor:
        """Tokens (width,) of rows of which one at least has controls, a mask or scores."""
        sampler, padding = choices.sampler(self._vocab), self._state.padding
        if masks is None and not choices.is_controlled:
            ints, floats = pack_choices(choices, width, self._vocab, padding)
            if self._placement.is_cuda:
                return self._captured[sampler, width](ints.pin_memory(), floats.pin_memory())
            return self._plain[sampler](logits, ints, floats)
        rows = masks.rows if masks is not None else {}
        ints, floats = pack_controlled(choices, rows, width, self._vocab, padding)
        if self._placement.is_cuda:
            if masks is not None:
                self._controls.words[: len(masks.words)].copy_(masks.words, non_blocking=True)
            run = self._captured[f"controlled {sampler}", width]
            return run(ints.pin_memory(), floats.pin_memory())
        words = torch.zeros(width, num_words(self._vocab), dtype=torch.int32)
        if masks is not None:
            words[: len(masks.words)] = masks.words
        return self._controlled[sampler](logits, ints, floats, words)

    def _score(self, logits: Tensor, tokens: Tensor, choices: Choices) -> Scores:
        """Scores of all rows on a GPU; elsewhere those of the rows that ask, and zeros for
        others."""
        if self._placement.is_cuda:
            return self._captured_scores[len(tokens)](tokens)
        rows = torch.tensor(choices.scored)
        found = score_tokens(logits[rows], tokens[rows])
        ints, floats = (x.new_zeros(len(choices), x.shape[1]) for x in found)
        return ints.index_copy_(0, rows, found[0]), floats.index_copy_(0, rows, found[1])

    def masks(self, count: int) -> Tensor:
        """Host memory (count, words) int32 of any values, to write the masks of so many rows to;
        its copy to the device does not wait."""
        size = (count, num_words(self._vocab))
        return staging_memory(size, torch.int32, self._placement)

    # -- warm-up ---------------------------------------------------------------------------------
    def warm_shapes(self) -> list[PromisedPass]:
        """Every choice, the largest first. Off a GPU the plain ones are left out: the passes warm
        them."""
        shapes: list[PromisedPass] = []
        for width in self.widths[::-1]:
            found: list[tuple[str, Callable[[], object]]] = []
            if not self._placement.is_cuda:
                found.append((f"controlled x{width}", partial(self._run_controlled, width)))
            for name in SAMPLERS if self._placement.is_cuda else ():
                found += [
                    (f"{name} x{width}", partial(self._capture, name, width)),
                    (f"controlled {name} x{width}", partial(self._capture_controlled, name, width)),
                ]
            if self._placement.is_cuda:
                found.append((f"logprobs x{width}", partial(self._capture_scores, width)))
            shapes += [PromisedPass(PassKind.CHOICE, width, *each) for each in found]
        return shapes

    @torch.no_grad()
    def _run_controlled(self, width: int) -> None:
        """Choose tokens with controls in the slot of padding, which no sequence has."""
        logits = torch.zeros(width, self._vocab)
        for sampling in ONE_PER_SAMPLER:
            choice = TokenChoice(self._state.padding, sampling, 0, 0, SOME_CONTROLS)
            self.choose_controlled(logits, Choices.of([choice], self._vocab), None)

    def _capture(self, name: str, width: int) -> None:
        if (name, width) not in self._captured:
            self.inputs.put(warm_rows(width, self._state.padding, self._vocab, GREEDY), width)
            run, placed = self._passes.fused_choice(name, width), self.inputs.choice(width)
            captured = self._graphs.capture(run, placed, f"{name} {width}", in_place=True)
            self._captured[name, width] = captured

    def _capture_controlled(self, name: str, width: int) -> None:
        packed = pack_controlled(NO_CHOICES, {}, width, self._vocab, self._state.padding)
        run = self._passes.fused_controlled_choice(name, width, self._controls)
        name = f"controlled {name}"
        if (name, width) not in self._captured:
            like = tuple(map(self._move, packed))
            self._captured[name, width] = self._graphs.capture(run, like, f"{name} {width}")

    def _capture_scores(self, width: int) -> None:
        if width not in self._captured_scores:
            tokens = self._move(torch.zeros(width, dtype=torch.int64))
            run = self._passes.fused_scores(width)
            self._captured_scores[width] = self._graphs.capture(run, (tokens,), f"logprobs {width}")
