"""Launches the passes of a planned step on the device: rows that decode, then parts of prompts, or
both in one mixed pass.

No sequence changes here, so that a step that raised can be launched again.
"""

from __future__ import annotations

import itertools
from collections import abc
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor

from predictors.chat.choosing import PassChoice
from predictors.chat.constraints import fill_masks
from predictors.chat.decoder.state import SlotReset
from predictors.chat.logit_changes import MaskSource, TokenMasks
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

is_plain = attrgetter("is_plain")


@dataclass(frozen=True, slots=True)
class StepControls:
    """Collects the scores and the constrained sequences of a step while its passes are launched."""

    previous: LaunchedStep | None
    """The step before this one, if its tokens are not read yet."""
    scores: dict[Sequence, RowScores] = field(default_factory=dict)
    constrained: list[Sequence] = field(default_factory=list)

    def collect(self, sequences: abc.Sequence[Sequence], chosen: PassChoice) -> Tensor:
        """Keep the scores that the sequences asked for; returns the pass's tokens."""
        if chosen.scores is not None:
            for row, sequence in enumerate(sequences):
                if sequence.work.controls.logprobs is not None:
                    self.scores[sequence] = RowScores(*chosen.scores, row)
        return chosen.tokens


@dataclass(frozen=True, slots=True)
class StepLauncher:
    """Launches the steps of one engine. Engine thread only."""

    runner: ChatRunner
    pictures: PictureRunner
    cache: PictureCache
    paging: Paging
    metrics: ChatMetrics
    slots: SlotRows

    def launch(
        self, plan: StepPlan[Sequence], started_at: float, previous: LaunchedStep | None
    ) -> LaunchedStep | None:
        """Launch the whole step; repeating it writes the same again. None for an empty plan.

        The tokens of the `previous` step are read here only if a row's choice depends on one of
        them, and only after that row's forward pass is launched.
        """
        runner, controls = self.runner, StepControls(previous)
        self.paging.put_tables(self._put_tables)
        tokens: list[Tensor] = []
        answering = [_answering(prompt_pass) for prompt_pass in plan.prefill]
        if self._is_mixed(plan):
            tokens += self._launch_mixed(plan.prefill[0], plan.decode, answering[0], controls)
            self.metrics.observe_rows(len(plan.decode))
        else:
            width = runner.decode_widths[-1]
            is_only_pass = len(plan.decode) <= width and not plan.prefill
            for first in range(0, len(plan.decode), width):
                group = plan.decode[first : first + width]
                chosen = self._launch_decode(group, controls)
                # the next pass uses this memory
                tokens.append(chosen if is_only_pass else chosen.clone())
                self.metrics.observe_rows(len(group))
            for prompt_pass, told in zip(plan.prefill, answering, strict=True):
                tokens.append(self._launch_prompts(prompt_pass, told, controls))
        for prompt_pass in plan.prefill:
            self.metrics.observe_prefill(prompt_pass.width)
        if not tokens:
            return None
        return LaunchedStep(
            chunks=[chunk for prompt_pass in plan.prefill for chunk in prompt_pass.chunks],
            sequences=[*plan.decode, *itertools.chain(*answering)],
            num_rows=len(plan.decode),
            copy=runner.copy(tokens[0] if len(tokens) == 1 else torch.cat(tokens)),
            started_at=started_at,
            scores=controls.scores,
            constrained=controls.constrained,
        )

    def _launch_decode(self, group: abc.Sequence[Sequence], controls: StepControls) -> Tensor:
        """Launch the pass over rows that decode; returns their next tokens."""
        rows = self.slots.rows(group)
        masks = self._mask_source(group, controls)
        if masks is None:
            return self.runner.decode(rows)
        return controls.collect(group, self.runner.decode_controlled(rows, masks))

    def _launch_prompts(
        self,
        prompt_pass: PromptPass[Sequence],
        answering: abc.Sequence[Sequence],
        controls: StepControls,
    ) -> Tensor:
        """Launch a pass over prompts; returns the first tokens of `answering`, the sequences whose
        prompts end in it."""
        runner, width = self.runner, prompt_pass.width
        parts = self._begin_parts(prompt_pass)
        masks = self._mask_source(answering, controls)
        if masks is None:
            return runner.prefill(parts, width)
        return controls.collect(answering, runner.prefill_controlled(parts, width, masks))

    def _is_mixed(self, plan: StepPlan[Sequence]) -> bool:
        """True if one pass takes all rows of a step: it has both kinds, none with an adapter."""
        mixed, prompts = self.runner.mixed, plan.prefill
        if not plan.decode or len(prompts) != 1 or prompts[0].width not in mixed.widths:
            return False
        if len(plan.decode) > mixed.rows or mixed.rows not in self.runner.decode_widths:
            return False
        keys = (*plan.decode, *(chunk.key for chunk in prompts[0].chunks))
        return not any(sequence.language_adapters for sequence in keys)

    def _launch_mixed(
        self,
        prompt_pass: PromptPass[Sequence],
        group: abc.Sequence[Sequence],
        answering: abc.Sequence[Sequence],
        controls: StepControls,
    ) -> list[Tensor]:
        """Launch one pass over rows that decode and parts of prompts; returns the rows' next tokens
        and the first tokens of `answering`."""
        mixed, rows = self.runner.mixed, self.slots.rows(group)
        parts = self._begin_parts(prompt_pass)
        mixed.launch(parts, prompt_pass.width, rows)
        tokens = mixed.choose_rows(rows, self._mask_source(group, controls))
        first = mixed.choose_first(parts, self._mask_source(answering, controls))
        return [controls.collect(group, tokens), controls.collect(answering, first)]

    def _mask_source(
        self, sequences: abc.Sequence[Sequence], controls: StepControls
    ) -> MaskSource | None:
        """Makes the masks of these rows; None if no row has controls."""
        if all(map(is_plain, sequences)):
            return None
        return partial(self._masks, sequences, controls)

    def _put_tables(self, grown: abc.Sequence[Sequence]) -> None:
        self.runner.reset_slots([SlotReset(each.slot, each.pages) for each in grown])

    def _reset_slots(self, sequences: abc.Sequence[Sequence]) -> None:
        """Prepare the slots of sequences whose first chunk is about to be read."""
        resets: list[SlotReset] = []
        for sequence in sequences:
            if sequence.num_launched:  # read again after a preemption: only its pages are new
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
        """The masks of these rows, made while their forward pass runs; None if none is under a
        grammar."""
        found = [(i, s, s.constraint) for i, s in enumerate(sequences) if s.constraint is not None]
        if not found:
            return None
        controls.constrained.extend(s for _, s, _ in found)
        forward = self.runner.mark()
        is_behind = any(s.num_launched > len(s.answer) for _, s, _ in found)
        if controls.previous is not None and is_behind:
            controls.previous.advance_grammars()
        words = self.runner.chooser.masks(len(found))
        fill_masks([(constraint, s.num_launched) for _, s, constraint in found], words.numpy())
        if forward.is_passed:
            self.metrics.count_late_mask()
        return TokenMasks(words, {i: row for row, (i, _, _) in enumerate(found)})

    def _begin_parts(self, prompt_pass: PromptPass[Sequence]) -> list[PromptPart]:
        """The parts of a pass over prompts, with their pictures encoded and their slots ready."""
        parts = [self._part(chunk) for chunk in prompt_pass.chunks]
        if new := [chunk.key for chunk in prompt_pass.chunks if not chunk.key.is_begun]:
            self._reset_slots(new)
        return parts

    def _part(self, chunk: PromptChunk[Sequence]) -> PromptPart:
        sequence = chunk.key
        part = slice(chunk.start, chunk.start + chunk.length)
        tokens, positions = sequence.prefill_part(part)
        pictures = self.cache.within(sequence, part, self.pictures)
        return PromptPart(
            slot=sequence.slot,
            start=chunk.start,
            tokens=tokens,
            positions=positions,
            pages=sequence.pages,
            pictures=pictures,
            choice=sequence.next_choice() if _begins_answer(chunk) else None,
            adapters=sequence.language_adapters,
        )


def ends_prompt(chunk: PromptChunk[Sequence]) -> bool:
    """True for the last chunk of what a sequence reads."""
    return chunk.start + chunk.length == chunk.key.to_prefill


def _answering(prompt_pass: PromptPass[Sequence]) -> list[Sequence]:
    """The sequences whose prompts end in the pass, and whose first token is chosen after it."""
    return [chunk.key for chunk in prompt_pass.chunks if _begins_answer(chunk)]


def _begins_answer(chunk: PromptChunk[Sequence]) -> bool:
    """True if the answer's first token is chosen after this chunk. A sequence that reads its answer
    again chooses its next token by decoding."""
    return ends_prompt(chunk) and not chunk.key.num_launched
