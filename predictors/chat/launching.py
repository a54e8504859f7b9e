"""Launches the passes of a planned step on the device: rows that decode, then parts of prompts.

Nothing of a sequence changes here, so that a step that raised can be launched again.
"""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor

from predictors.chat.choosing import PassChoice
from predictors.chat.constraints import fill_masks
from predictors.chat.decoder.state import SlotReset
from predictors.chat.logit_changes import TokenMasks
from predictors.chat.paging import Paging
from predictors.chat.planning import LaunchedStep
from predictors.chat.request import NO_CONTROLS
from predictors.chat.rows import PromptPart
from predictors.chat.runner import ChatRunner
from predictors.chat.scheduling import PromptChunk, PromptPass, StepPlan
from predictors.chat.scores import RowScores
from predictors.chat.sequence import ChatMetrics, Sequence
from predictors.chat.slot_rows import SlotRows
from predictors.chat.vision.pictures import PictureCache, PictureRunner

is_plain = attrgetter("is_plain")  # of a sequence


@dataclass(frozen=True, slots=True)
class StepControls:
    """The step before the one that is launched, if its tokens are not read yet, and the rows of
    this one that have scores or a grammar."""

    due: LaunchedStep | None
    scores: dict[Sequence, RowScores] = field(default_factory=dict)
    constrained: list[Sequence] = field(default_factory=list)

    def add(self, sequences: abc.Sequence[Sequence], chosen: PassChoice) -> Tensor:
        """Keep the scores that were asked for; returns the pass's tokens."""
        if chosen.scores is not None:
            for row, sequence in enumerate(sequences):
                if sequence.work.controls.logprobs is not None:
                    self.scores[sequence] = RowScores(*chosen.scores, row)
        return chosen.tokens


@dataclass(frozen=True, slots=True)
class StepLauncher:
    """The launches of one engine. Engine thread only."""

    runner: ChatRunner
    pictures: PictureRunner
    cache: PictureCache
    paging: Paging
    metrics: ChatMetrics
    slots: SlotRows

    def launch(
        self, plan: StepPlan[Sequence], started_at: float, due: LaunchedStep | None
    ) -> LaunchedStep | None:
        """Launch the whole step; repeating it writes the same again. None for an empty plan.

        The tokens of `due`, the step before, are read here only if the choice of a row depends on
        one of them: once the forward pass of that row is launched.
        """
        runner, controls = self.runner, StepControls(due)
        self.paging.put_tables(self._put_tables)
        sequences: list[Sequence] = []
        tokens: list[Tensor] = []
        width = runner.decode_widths[-1]
        for first in range(0, len(plan.decode), width):
            group = plan.decode[first : first + width]
            tokens.append(self._decode(group, controls))
            self.metrics.observe_rows(len(group))
            sequences += group
        chunks: list[PromptChunk[Sequence]] = []
        for prompt_pass in plan.prefill:
            ended = [chunk.key for chunk in prompt_pass.chunks if _begins_answer(chunk)]
            tokens.append(self._read(prompt_pass, ended, controls))
            self.metrics.observe_prefill(prompt_pass.width)
            chunks += prompt_pass.chunks
            sequences += ended
        if not tokens:
            return None
        joined = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
        copy, num_rows = runner.copy(joined), len(plan.decode)
        more = controls.scores, controls.constrained
        return LaunchedStep(chunks, sequences, num_rows, copy, started_at, *more)

    def _decode(self, group: abc.Sequence[Sequence], controls: StepControls) -> Tensor:
        """Launch a decode step; returns the next tokens."""
        rows = self.slots.rows(group)
        if all(map(is_plain, group)):
            return self.runner.decode(rows)
        masks = partial(self._masks, group, controls)
        return controls.add(group, self.runner.decode_controlled(rows, masks))

    def _read(
        self,
        prompt_pass: PromptPass[Sequence],
        ended: abc.Sequence[Sequence],
        controls: StepControls,
    ) -> Tensor:
        """Launch a pass over prompts; returns the first tokens of those that are `ended` in it."""
        runner, width = self.runner, prompt_pass.width
        parts = [self._part(chunk) for chunk in prompt_pass.chunks]
        if new := [chunk.key for chunk in prompt_pass.chunks if not chunk.key.is_begun]:
            self._reset(new)
        if all(map(is_plain, ended)):
            return runner.prefill(parts, width)
        masks = partial(self._masks, ended, controls)
        return controls.add(ended, runner.prefill_controlled(parts, width, masks))

    def _put_tables(self, grown: abc.Sequence[Sequence]) -> None:
        self.runner.reset_slots([SlotReset(each.slot, each.pages) for each in grown])

    def _reset(self, sequences: abc.Sequence[Sequence]) -> None:
        """Make their slots ready for what they read."""
        resets: list[SlotReset] = []
        for sequence in sequences:
            if sequence.launched:  # it reads its answer again: the rest of its slot is as it was
                resets.append(SlotReset(sequence.slot, sequence.pages))
                continue
            self.slots.put(sequence)
            prompt = sequence.work.tokens.numpy()
            resets.append(SlotReset(sequence.slot, sequence.pages, prompt))
            if sequence.work.controls is not NO_CONTROLS:
                self.runner.chooser.reset(sequence.slot, sequence.work.controls)
        self.runner.reset_slots(resets)

    def _masks(
        self, sequences: abc.Sequence[Sequence], controls: StepControls
    ) -> TokenMasks | None:
        """The masks of a pass that was just launched for these rows, made while it runs."""
        found = [(i, s, s.constraint) for i, s in enumerate(sequences) if s.constraint is not None]
        if not found:
            return None
        controls.constrained.extend(s for _, s, _ in found)
        forward = self.runner.mark()
        if controls.due is not None and any(s.launched > len(s.answer) for _, s, _ in found):
            controls.due.take()
        words = self.runner.chooser.masks(len(found))
        fill_masks([(constraint, s.launched) for _, s, constraint in found], words.numpy())
        if forward.is_passed:
            self.metrics.count_late_mask()
        return TokenMasks(words, {i: row for row, (i, _, _) in enumerate(found)})

    def _part(self, chunk: PromptChunk[Sequence]) -> PromptPart:
        sequence = chunk.key
        part = slice(chunk.start, chunk.start + chunk.length)
        tokens, positions = sequence.part(part)
        pictures = self.cache.within(sequence, part, self.pictures)
        choice = sequence.next_choice() if _begins_answer(chunk) else None
        where, adapters = (sequence.slot, chunk.start), sequence.language_adapters
        return PromptPart(*where, tokens, positions, sequence.pages, pictures, choice, adapters)


def is_last(chunk: PromptChunk[Sequence]) -> bool:
    return chunk.start + chunk.length == chunk.key.to_read


def _begins_answer(chunk: PromptChunk[Sequence]) -> bool:
    """False also where a sequence reads its answer again: its next token is chosen by decoding."""
    return is_last(chunk) and not chunk.key.launched
