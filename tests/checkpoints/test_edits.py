"""The embedded checkpoint replaces a shape in a masked part of a picture, and nothing else."""

from __future__ import annotations

import asyncio

import numpy as np

from benchmarks.flux.inpainting import STEPS, STRENGTH, edited, make_predictor
from checkpoints.training import checker
from checkpoints.training.edits import edits
from checkpoints.training.scenes import is_held_out

NUM_CASES, LEAST = 16, 13
"""Of the 200 of the model card, which take a minute and a half."""


def test_cases_are_held_out_show_another_shape_and_mask_it_alone() -> None:
    cases = edits(60)
    assert len({case.prompt for case in cases}) == 60
    for case in cases:
        assert is_held_out(case.wanted)
        before = checker.read(case.picture)
        assert before is not None
        assert before != case.wanted
        assert before.ground == case.wanted.ground
        kept = set(before.figures) & set(case.wanted.figures)
        assert len(kept) >= len(case.wanted.figures) - 1
        ground = np.asarray(case.picture)[0, 0]
        changed = np.asarray(case.picture) != ground
        masked = np.asarray(case.mask) == 255
        assert 200 < masked.sum() < 4000
        assert changed[masked].any()


def test_a_shape_in_the_mask_is_replaced_as_the_prompt_says() -> None:
    cases, predictor = edits(200)[:NUM_CASES], make_predictor()
    pictures = asyncio.run(edited(predictor, cases, strength=STRENGTH, steps=STEPS))
    predictor.stop()
    right = sum(case.is_right(picture) for case, picture in zip(cases, pictures, strict=True))
    assert right >= LEAST
    for case, picture in zip(cases, pictures, strict=True):
        far = np.asarray(case.mask.resize((8, 8))) == 0  # parts of 16 pixels without the mask
        before, after = (np.asarray(x.resize((8, 8))).astype(int) for x in (case.picture, picture))
        assert np.abs(before - after)[far].mean() < 12
