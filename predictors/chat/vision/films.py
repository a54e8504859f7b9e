"""Picks the frames of films, resizes them and cuts them into patches, as transformers' video
processor of a checkpoint does.

Two frames become one step of patches, which the vision tower reads on its own as it does a picture:
its attention never leaves a step. So a film is a row of such steps from here on.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from predictors.chat.decoder.rotary import VisionSpan
from predictors.chat.vision.pixels import (
    PatchFormat,
    PreparedPicture,
    patch_format,
    patches_of,
    resized_exactly,
)
from predictors.errors import InvalidRequest
from predictors.protocol.films.decode import FilmFacts

FRAMES = 2
"""Frames that make one step of a film. A checkpoint with another number is served without films."""
ALL_FRAMES = -1
DEFAULT_FPS = 2.0  # qwen-vl-utils'
ROOM = 1.05  # of the least pixels, that the most are not below; as in qwen-vl-utils


@dataclass(frozen=True, slots=True)
class FilmBounds:
    """Pixels of one frame, the least of the checkpoint if None, and `total_pixels` of every second
    frame together, which is what tokens are made of."""

    min_pixels: int | None
    max_pixels: int
    total_pixels: int


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """How frames are picked: `fps` in a second, or `num_frames` in all, at most `most`."""

    fps: float | None
    num_frames: int | None
    min_frames: int | None
    most: int


@dataclass(frozen=True, slots=True)
class FilmPlan:
    """The frames of a film that are read, by their ascending `indices`, and the grid of patches
    (rows, columns) that each is resized to."""

    facts: FilmFacts
    indices: tuple[int, ...]
    grid: tuple[int, int]

    @property
    def steps(self) -> int:
        return -(-len(self.indices) // FRAMES)

    @property
    def fps(self) -> float:
        """Frames that are read of a second, on average; as `VideoMetadata.sampled_fps`."""
        return len(self.indices) / self.facts.frames * self.facts.fps


@dataclass(frozen=True, slots=True)
class PreparedFilm:
    """A film ready for the device: `steps` of two frames each. `text` stands in for the template's
    video token, with one such token for each of `spans`; these say how many steps it covers and how
    far apart they lie in time."""

    plan: FilmPlan
    steps: tuple[PreparedPicture, ...] = field(repr=False)
    text: str
    spans: tuple[tuple[int, float], ...]

    @property
    def nbytes(self) -> int:
        return sum(step.values.nbytes for step in self.steps)


class FilmPreparation(ABC):
    """Prepares films as a checkpoint's processor of transformers does. Thread-safe.

    `videos` are its settings if they are usual, or the processor itself. A model says in a subclass
    which processor that is, how it picks frames, how its sizes are meant and how it tells the time.
    """

    def __init__(self, videos: Any) -> None:
        self.patch, self.merge = int(videos.patch_size), int(videos.merge_size)
        self.temporal = int(videos.temporal_patch_size)
        size = videos.size
        self._least, self._most = int(size["shortest_edge"]), int(size["longest_edge"])
        self._videos = videos
        self._format = patch_format(videos)

    @property
    def default_fps(self) -> float:
        """Frames of a second that are read where neither caller nor checkpoint says."""
        return float(self._videos.fps or DEFAULT_FPS)

    def indices(self, facts: FilmFacts, choice: FrameChoice) -> tuple[int, ...]:
        """The frames that are read. Raises `InvalidRequest` for a number that the film can't
        give."""
        picker = copy.copy(self._videos)
        picker.max_frames = min(picker.max_frames, choice.most)
        picker.min_frames = min(choice.min_frames or picker.min_frames, picker.max_frames)
        fps, count = choice.fps, choice.num_frames
        if count == ALL_FRAMES:
            if facts.frames <= choice.most:
                return tuple(range(facts.frames))
            count = choice.most
        if count is None and fps is None and picker.num_frames is None:
            fps = self.default_fps
        if count is not None or fps is not None:
            picker.num_frames = picker.fps = None
        if count is not None and count > facts.frames:
            raise InvalidRequest(f"has {facts.frames} frames; num_frames {count} is more")
        return self._picked(picker, facts, count, fps)

    def grid_of(self, frames: int, height: int, width: int, bounds: FilmBounds) -> tuple[int, int]:
        """Patches (rows, columns) of each of `frames`, resized as transformers does it. Raises
        `ValueError` for sizes that it refuses."""
        height, width = self._resized(frames, height, width, bounds)
        return height // self.patch, width // self.patch

    @abstractmethod
    def _picked(
        self, picker: Any, facts: FilmFacts, count: int | None, fps: float | None
    ) -> tuple[int, ...]:
        """As the processor's `sample_frames` with the settings of `picker`."""

    @abstractmethod
    def _resized(self, frames: int, height: int, width: int, bounds: FilmBounds) -> tuple[int, int]:
        """Height and width of each of `frames` in pixels, multiples of `patch`. Raises `ValueError`
        for sizes that the processor refuses."""

    @abstractmethod
    def telling(self, plan: FilmPlan) -> tuple[str, tuple[tuple[int, float], ...]]:
        """`text` and `spans` of a prepared film."""

    def step(
        self, frames: Tensor, grid: tuple[int, int], *, on_device: bool
    ) -> tuple[Tensor, PatchFormat | None]:
        """Values and format of two `frames` (2, height, width, 3) uint8, see `PreparedPicture`.
        They are resized here in any case; without `on_device` the patches are made here, too."""
        pictures = frames.permute(0, 3, 1, 2)
        if self._format is None:
            return self._unusual_step(pictures, grid), None
        levels = resized_exactly(pictures, grid, self.patch)
        if on_device:
            whole = levels.permute(0, 2, 3, 1).contiguous()
            return whole.pin_memory() if torch.cuda.is_available() else whole, self._format
        return torch.cat([patches_of(each, self._format) for each in levels], dim=1), None

    def _unusual_step(self, pictures: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches of two pictures (2, 3, height, width) uint8 by transformers' processor."""
        from transformers.image_utils import SizeDict  # it is imported already
        from transformers.video_processing_utils import BaseVideoProcessor

        videos = self._videos
        size = SizeDict(height=grid[0] * self.patch, width=grid[1] * self.patch)
        # the processor's own `resize` would choose a size first
        levels = BaseVideoProcessor.resize(
            videos, image=pictures, size=size, resample=videos.resample
        )
        values = videos.rescale_and_normalize(
            levels,
            videos.do_rescale,
            videos.rescale_factor,
            videos.do_normalize,
            tuple(videos.image_mean),
            tuple(videos.image_std),
        )
        patches, *_ = videos.patchify(values[None], self.patch, self.merge, FRAMES)
        # (patches, channels, frames, pixels): the first frame, then the second one
        pairs: Tensor = patches[0].unflatten(1, (-1, FRAMES, self.patch**2))
        return pairs.transpose(1, 2).flatten(1).contiguous()

    def prepare(
        self, plan: FilmPlan, frames: Sequence[Tensor], digest: bytes, *, on_device: bool
    ) -> PreparedFilm:
        """The film of these `frames` (height, width, 3) uint8, those of the plan. `digest` names
        the film."""
        steps = []
        for i in range(plan.steps):
            pair = list(frames[FRAMES * i : FRAMES * (i + 1)])
            pair += pair[-1:] * (FRAMES - len(pair))  # as the processor fills the last step
            values, layout = self.step(torch.stack(pair), plan.grid, on_device=on_device)
            own = plan.indices[FRAMES * i : FRAMES * (i + 1)]
            key = digest + repr((own, plan.grid, layout)).encode()
            pixels = plan.facts.width * plan.facts.height
            steps.append(PreparedPicture(key, plan.grid, pixels, values, layout, frames=FRAMES))
        text, spans = self.telling(plan)
        return PreparedFilm(plan, tuple(steps), text, spans)


def lengths_of(film: PreparedFilm, merge: int) -> tuple[int, int]:
    """Rows and columns of each step of a film, in tokens."""
    rows, columns = film.plan.grid
    return rows // merge, columns // merge


def span_at(start: int, film: PreparedFilm, span: int, merge: int) -> VisionSpan:
    """Where span number `span` of a film lies, whose first token has index `start`."""
    steps, interval = film.spans[span]
    return VisionSpan(start, *lengths_of(film, merge), steps, interval)
