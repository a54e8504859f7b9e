"""Runs a few conversations through the whole warm model before it is ready, from the template to
the logits, and checks the values that come out.

No job is admitted and no metric counts them. Engine thread; it waits for the device.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from predictors.chat.choices import Choices, TokenChoice
from predictors.chat.constraints import mask_of
from predictors.chat.decoder.state import SlotReset
from predictors.chat.inputs import ChatPreparer
from predictors.chat.kv_cache import PagePool
from predictors.chat.logit_changes import TokenMasks
from predictors.chat.model import ChatModel, EncodedPicture
from predictors.chat.request import NO_CONTROLS, ChatRequest, Controls, Picture, Sampling
from predictors.chat.rows import DecodeRows, PromptPart
from predictors.chat.runner import ChatRunner
from predictors.chat.sampling import GREEDY, ONE_PER_SAMPLER
from predictors.chat.scores import RowScores
from predictors.chat.template_checks import FILM_PROBE, PROBES
from predictors.chat.vision.films import FRAMES, FilmPlan
from predictors.chat.vision.pictures import PictureRunner
from predictors.chat.vision.pixels import PreparedPicture
from predictors.chat.work import ChatWork
from predictors.compute.device.placement import DAMAGED, check_finite
from predictors.errors import EngineFailed, InvalidRequest
from predictors.protocol.films.decode import FilmFacts

log = logging.getLogger(__name__)

SIDES = (2, 3)  # of the picture, in tokens
SLOT = 0
ROUNDING = 1e-5


def conversations(
    name: str, model: ChatModel, preparer: ChatPreparer, *, on_device: bool
) -> Iterator[tuple[str, ChatWork]]:
    """The conversations of `PROBES`, as requests are prepared. One that does not fit into the
    context is left out, and the log says so. `name` is the served model's."""
    picture = _picture(model, preparer, on_device=on_device)
    for what, messages in PROBES.items():
        request = ChatRequest(messages, GREEDY, seed=0, max_tokens=1)
        pictures = [picture for m in messages for part in m.parts if isinstance(part, Picture)]
        try:
            yield what, preparer.assemble(request, pictures)
        except InvalidRequest as error:
            log.warning("%s: %s was not tried: %s", name, what, error.message)
    if preparer.films is not None:
        yield from _film(name, model, preparer, on_device=on_device)


def _film(
    name: str, model: ChatModel, preparer: ChatPreparer, *, on_device: bool
) -> Iterator[tuple[str, ChatWork]]:
    """The conversation about a film, with two steps of it."""
    films, what = model.films, "a film"
    assert films is not None
    height, width = (side * films.patch * films.merge for side in SIDES)
    levels = _levels(2 * FRAMES * height, width).unflatten(0, (-1, height))
    facts = FilmFacts(len(levels), films.default_fps, width, height)
    grid = (height // films.patch, width // films.patch)
    plan = FilmPlan(facts, tuple(range(len(levels))), grid)
    film = films.prepare(plan, levels.unbind(), b"", on_device=on_device)
    request = ChatRequest(FILM_PROBE, GREEDY, seed=0, max_tokens=1)
    try:
        yield what, preparer.assemble(request, [], [film])
    except InvalidRequest as error:
        log.warning("%s: %s was not tried: %s", name, what, error.message)


def _picture(model: ChatModel, preparer: ChatPreparer, *, on_device: bool) -> PreparedPicture:
    """A small picture without two equal patches, prepared as a caller's."""
    images, bounds = model.pictures, preparer.pixels.default
    height, width = (side * images.patch * images.merge for side in SIDES)
    levels = _levels(height, width)
    grid = images.grid_of(height, width, bounds)
    values, layout = images.prepare(levels, bounds, grid, on_device=on_device)
    return PreparedPicture(b"", grid, height * width, values, layout)


def _levels(height: int, width: int) -> Tensor:
    values = torch.arange(height * width * 3).mul(97).remainder(251)
    return values.to(torch.uint8).view(height, width, 3)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The loaded parts of an engine without a sequence."""

    runner: ChatRunner
    pictures: PictureRunner
    pool: PagePool
    tokenizer: Any

    @torch.no_grad()
    def run(self, what: str, work: ChatWork) -> None:
        """Read one prompt, choose a token, decode with it. Raises `EngineFailed` for features or
        logits that are not finite or all equal, and for a token that the tokenizer does not have;
        `what` names the conversation."""
        owner = object()
        pages = self.pool.reserve(owner, work.num_prompt_tokens + 1)
        if pages is None:
            log.warning("%s was not tried: the KV cache is too small", what)
            return
        try:
            self._run(f"a warm-up prompt ({what})", work, pages)
        finally:
            self.pool.release(owner)

    def _run(self, what: str, work: ChatWork, pages: tuple[int, ...]) -> None:
        runner, total = self.runner, work.num_prompt_tokens
        encoded = [self.pictures.encode(placed.prepared) for placed in work.pictures]
        for picture in encoded:
            check_finite([picture.features], f"the vision features of {what}")
            first = picture.features[:, :1]
            spread, size = (picture.features - first).abs().max(), picture.features.abs().max()
            # equal rows may differ in last bits where threads share a matmul
            if bool(spread <= ROUNDING * size) and picture.features.shape[1] > 1:
                raise EngineFailed(f"the vision features of {what} are all equal; {DAMAGED}")
        runner.reset_slots([SlotReset(SLOT, pages, work.tokens.numpy())])
        widths = runner.chunk_widths
        for start in range(0, total, widths[-1]):
            part = _part(work, encoded, pages, start, min(widths[-1], total - start))
            width = next(w for w in widths if w >= len(part.tokens))
            logits = runner.prompt_logits([part], width)
        self._check(logits, what)
        runner.prefill([part], width)
        ints = np.array([[SLOT], [total], [work.next_position], [0]])
        logits = runner.step_logits(DecodeRows(ints, self._choices(GREEDY)))
        self._check(logits, f"the answer to {what}")
        self._check_choice(logits)

    def _check_choice(self, logits: Tensor) -> None:
        """Raise `EngineFailed` if a sampler does not take the one token that a mask allows, or does
        not score it."""
        chooser, vocab = self.runner.chooser, logits.shape[1]
        only = (int(logits[0].argmax()) + 1) % vocab
        masks = TokenMasks(chooser.masks(1), {0: 0})
        masks.words[0] = torch.from_numpy(mask_of(frozenset((only,)), masks.words.shape[1]))
        for sampling in ONE_PER_SAMPLER:
            choices = self._choices(sampling, Controls(logprobs=0))
            chosen = chooser.choose_controlled(logits, choices, masks)
            token = int(chosen.tokens)
            assert chosen.scores is not None
            score = RowScores(*chosen.scores, 0).read(token, 0)
            if token != only or not -math.inf < score.logprob <= 0:
                raise EngineFailed(
                    f"under a mask that allows token {only} the choice was {token}, with logprob "
                    f"{score.logprob:g}: a kernel of the device is wrong"
                )

    def _choices(self, sampling: Sampling, controls: Controls = NO_CONTROLS) -> Choices:
        choice = TokenChoice(SLOT, sampling, 0, 1, controls)
        return Choices.of([choice], self.runner.vocab)

    def _check(self, logits: Tensor, what: str) -> None:
        row = logits[0].float()
        check_finite([row], f"the logits of {what}")
        if row.min() == row.max():
            raise EngineFailed(f"the logits of {what} are all equal; {DAMAGED}")
        token = int(row.argmax())
        if self.tokenizer.id_to_token(token) is None:
            raise EngineFailed(
                f"the likeliest token of {what} is {token}, which the tokenizer does not have; "
                f"{DAMAGED}"
            )


def _part(
    work: ChatWork, encoded: list[EncodedPicture], pages: tuple[int, ...], start: int, count: int
) -> PromptPart:
    end = start + count
    pictures = []
    for placed, picture in zip(work.pictures, encoded, strict=True):
        first, last = max(placed.start, start), min(placed.start + placed.length, end)
        if first < last:
            rows = picture.part(first - placed.start, last - placed.start)
            pictures.append((first - start, rows))
    choice = TokenChoice(SLOT, GREEDY, 0, 0) if end == work.num_prompt_tokens else None
    tokens, positions = work.tokens.numpy()[start:end], work.positions.numpy()[:, start:end]
    return PromptPart(SLOT, start, tokens, positions, pages, pictures, choice)
