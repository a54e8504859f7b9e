"""Rotary positions of films as Qwen2.5-VL was trained with them, token by token, after the paper
(arXiv 2409.12191, section 2.1) and what `qwen-vl-finetune` computes."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

VIDEO = 2
"""The type of a film's tokens in transformers' `mm_token_type_ids`."""


class TrainedPositions:
    """In the place of `get_rope_index` of transformers' model, for one prompt. Those without films
    are left to the library."""

    def __init__(self, model: Any) -> None:
        self._library = model.get_rope_index
        self._merge = model.config.vision_config.spatial_merge_size
        self._per_second = model.config.vision_config.tokens_per_second

    def __call__(
        self,
        input_ids: Tensor,
        mm_token_type_ids: Tensor,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **rest: Any,
    ) -> tuple[Tensor, Tensor]:
        if video_grid_thw is None:
            given = {"mm_token_type_ids": mm_token_type_ids, "attention_mask": attention_mask}
            return self.of_library(input_ids, image_grid_thw=image_grid_thw, **given)
        assert len(input_ids) == 1
        assert attention_mask is None or attention_mask.all()
        assert second_per_grid_ts is not None
        grids = {1: iter(() if image_grid_thw is None else image_grid_thw.tolist())}
        grids[VIDEO] = iter(video_grid_thw.tolist())
        seconds = iter(torch.as_tensor(second_per_grid_ts, dtype=torch.float32))
        found: list[tuple[int, int, int]] = []
        for kind, run in itertools.groupby(mm_token_type_ids[0].tolist()):
            begin = max(map(max, found), default=-1) + 1
            length = len(list(run))
            if kind == 0:
                found += [(begin + i,) * 3 for i in range(length)]
                continue
            time, height, width = next(grids[kind])
            spacing = next(seconds) * self._per_second if kind == VIDEO else torch.tensor(0.0)
            tokens = list(
                itertools.product(
                    (begin + int(spacing * step) for step in range(time)),
                    range(begin, begin + height // self._merge),
                    range(begin, begin + width // self._merge),
                )
            )
            assert len(tokens) == length  # pictures in a row have text between them
            found += tokens
        positions = torch.tensor(found).T[:, None]
        return positions, (positions.max() + 1 - len(found)).view(1, 1)

    def of_library(self, input_ids: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        """The result of transformers' own function."""
        found: tuple[Tensor, Tensor] = self._library(input_ids, **given)
        return found
