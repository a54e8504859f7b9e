"""Launches the passes of a planned step on the device: rows that decode, then parts of prompts.

Nothing of a sequence changes here, so that a step that raised can be launched again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from predictors.chat.paging import Paging
from predictors.chat.planning import LaunchedStep
from predictors.chat.rows import DecodeRow, PromptPart
from predictors.chat.runner import ChatRunner
from predictors.chat.scheduling import PromptChunk, PromptPass, StepPlan
from predictors.chat.sequence import ChatMetrics, Sequence
from predictors.chat.vision.pictures import PictureCache, PictureRunner


@dataclass(frozen=True, slots=True)
class StepLauncher:
    """The launches of one engine. Engine thread only."""

    runner: ChatRunner
    pictures: PictureRunner
    cache: PictureCache
    paging: Paging
    metrics: ChatMetrics

    def launch(self, plan: StepPlan[Sequence], started_at: float) -> LaunchedStep | None:
        """Launch the whole step; repeating it writes the same again. None for an empty plan."""
        runner = self.runner
        self.paging.put_tables(runner.reset_slot)
        sequences: list[Sequence] = []
        tokens: list[Tensor] = []
        width = runner.decode_widths[-1]
        for first in range(0, len(plan.decode), width):
            group = plan.decode[first : first + width]
            tokens.append(runner.decode([_decode_row(sequence) for sequence in group]))
            self.metrics.observe_rows(len(group))
            sequences += group
        chunks: list[PromptChunk[Sequence]] = []
        for prompt_pass in plan.prefill:
            tokens.append(self._read(prompt_pass))
            chunks += prompt_pass.chunks
            sequences += [chunk.key for chunk in prompt_pass.chunks if _begins_answer(chunk)]
        if not tokens:
            return None
        joined = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
        copy = runner.copy(joined)
        return LaunchedStep(chunks, sequences, len(plan.decode), copy, started_at)

    def _read(self, prompt_pass: PromptPass[Sequence]) -> Tensor:
        """Launch a pass over prompts; returns the first tokens of those that end in it."""
        parts = [self._part(chunk) for chunk in prompt_pass.chunks]
        for chunk in prompt_pass.chunks:
            sequence = chunk.key
            if not sequence.is_begun:
                # one that reads its answer again has its newest tokens in its slot
                prompt = None if sequence.launched else sequence.work.tokens
                self.runner.reset_slot(sequence.slot, sequence.pages, prompt)
        return self.runner.prefill(parts, prompt_pass.width)

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


def _decode_row(sequence: Sequence) -> DecodeRow:
    """The sequence's row in the next decode step: its newest token is not in the cache yet."""
    index = sequence.launched - 1
    position, length = sequence.work.next_position + index, sequence.total + index
    where = (sequence.slot, index, position, length, sequence.pages)
    return DecodeRow(*where, sequence.next_choice(), sequence.language_adapters)
