"""Films of requests: which of their frames are read and how large, and the prepared ones. Pool
threads.

Planning takes the numbers of a file's header and no pixels, so that a film that does not fit is
refused before it is decoded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from predictors.chat.adapters.mix import AdapterMix
from predictors.chat.film import Film, FilmSize
from predictors.chat.model import ChatModel
from predictors.chat.pixel_bounds import PixelLimits
from predictors.chat.tensors import FRAMES as STORED_FRAMES
from predictors.chat.vision.films import (
    ALL_FRAMES,
    FRAMES,
    FilmBounds,
    FilmPlan,
    FilmPreparation,
    FrameChoice,
    PreparedFilm,
)
from predictors.compute.caches import ByteBoundedCache
from predictors.errors import InvalidRequest, PromptTooLong
from predictors.protocol.films.decode import (
    FilmFacts,
    FilmFrames,
    check_duration,
    decode_frames,
    probe_frames,
)
from predictors.protocol.images.decode import Pixels, decode_pixels
from predictors.settings import FilmLimits, ImageLimits

FILM_CACHE_BYTES = 256 * 2**20
"""Size of the cache of prepared films: `n` answers, or a repeated film, prepare it once."""
PATCHES = STORED_FRAMES.removesuffix(".weight")
FILM_LESS = "lower fps, max_frames or total_pixels to read films smaller"
LEAST_FRAMES = 2
BYTES_PER_TOKEN = 180  # of a film's file, at two frames per second


class FilmPreparer:
    """Prepares films for one model that takes them. Thread-safe. `on_device`, `max_context` and
    `pixels` are those of pictures."""

    def __init__(
        self,
        model: ChatModel,
        limits: FilmLimits,
        images: ImageLimits,
        pixels: PixelLimits,
        max_context: Callable[[], int],
        on_device: bool,
    ) -> None:
        assert model.films is not None
        self._films: FilmPreparation = model.films
        self.limits = limits
        self.images = images
        self._pixels = pixels
        self._max_context = max_context
        self._on_device = on_device
        self._lock = threading.Lock()
        self._cache: ByteBoundedCache[tuple[bytes, object], PreparedFilm]
        self._cache = ByteBoundedCache(FILM_CACHE_BYTES, lambda film: film.nbytes)

    def check_adapters(self, mix: AdapterMix) -> None:
        """Raise `InvalidRequest` for an adapter that changes how patches are read: of its part for
        the second frame nothing is kept."""
        for adapter, _ in mix.scales:
            if PATCHES in adapter.changes:
                raise InvalidRequest(
                    f"films are not taken with the adapter {adapter.name!r}: it changes how "
                    "patches of pictures are read",
                    param="loras",
                )

    def check_pictures(self, film: Film) -> None:
        """Raise `InvalidRequest` for a film of pictures that is too long, or of which not all are
        to be read. No picture needs to be decoded for that."""
        count, asked, most = len(film.files), film.options, self.limits.max_frames
        with film.named_in_errors():
            if count > most:
                raise InvalidRequest(f"is a film of {count} frames; at most {most} are taken")
            if asked.num_frames not in (None, ALL_FRAMES, count):
                problem = f"num_frames {asked.num_frames}"
            elif asked.max_frames is not None and asked.max_frames < count:
                problem = f"max_frames {asked.max_frames}"
            else:
                return
            raise InvalidRequest(
                f"is a film of {count} pictures, all of which are read, and {problem} asks for "
                "others: send the pictures that are to be read"
            )

    # -- sizes -----------------------------------------------------------------------------------
    def plan(self, film: Film, facts: FilmFacts) -> FilmPlan:
        """The frames to read and their size. Raises `InvalidRequest` for a film that is too large
        or that can't be read as asked."""
        with film.named_in_errors():
            indices = self._indices(film, facts)
            bounds = self._bounds(film)
            count, area = len(indices), facts.width * facts.height
            if count * area > self.limits.max_pixels:
                raise InvalidRequest(
                    f"{count} frames of {facts.width}x{facts.height} pixels are {count * area} in "
                    f"all; at most {self.limits.max_pixels} are taken: ask for fewer frames"
                )
            try:
                grid = self._films.grid_of(count, facts.height, facts.width, bounds)
            except ValueError as error:  # sides too different, or no pixel left after resizing
                raise InvalidRequest(
                    f"frames of {facts.width}x{facts.height} pixels can't be cut into patches"
                ) from error
            plan = FilmPlan(facts, indices, grid)
            self._check_tokens(plan, film.where)
            return plan

    def _indices(self, film: Film, facts: FilmFacts) -> tuple[int, ...]:
        asked, limits = film.options, self.limits
        if film.is_frames:
            check_duration(facts.frames, facts.fps, limits)
            return tuple(range(facts.frames))
        # frames that are held together in memory
        held = limits.max_pixels // (facts.width * facts.height) // FRAMES * FRAMES
        most = max(LEAST_FRAMES, min(limits.max_frames, held))
        for name in ("num_frames", "min_frames"):
            value = getattr(asked, name)
            if value is not None and value != ALL_FRAMES and value > most:
                raise InvalidRequest(
                    f"{name} {value} is above the {most} that this server reads of a film of "
                    f"{facts.width}x{facts.height} pixels"
                )
        if asked.max_frames is not None:
            if (asked.num_frames or 0) > asked.max_frames:
                raise InvalidRequest(
                    f"num_frames {asked.num_frames} is above max_frames {asked.max_frames}"
                )
            most = min(most, asked.max_frames)
        choice = FrameChoice(asked.fps, asked.num_frames, asked.min_frames, most)
        return self._films.indices(facts, choice)

    def _bounds(self, film: Film) -> FilmBounds:
        asked, pixels = film.options, self._pixels
        tokens = self.limits.max_tokens or self._max_context() // 2
        total = tokens * pixels.token_pixels
        if asked.total_pixels is not None:
            total = min(total, asked.total_pixels)
        most = pixels.default_max_pixels if asked.max_pixels is None else asked.max_pixels
        return FilmBounds(asked.min_pixels, most, total)

    def _check_tokens(self, plan: FilmPlan, where: str) -> None:
        tokens, context = self.tokens(plan), self._max_context()
        if tokens >= context:
            rows, columns = plan.grid
            patch = self._films.patch
            size = f"{len(plan.indices)} frames read as {columns * patch}x{rows * patch}"
            share = f"{tokens} of them for {where}, {size} ({FILM_LESS})"
            raise PromptTooLong.of(context, f"more than {tokens}", share=share)

    def tokens(self, plan: FilmPlan) -> int:
        """Tokens of the prompt that stand for the film's patches."""
        return plan.steps * plan.grid[0] * plan.grid[1] // self._films.merge**2

    def size(self, film: PreparedFilm) -> FilmSize:
        plan, patch = film.plan, self._films.patch
        rows, columns = plan.grid
        count = len(plan.indices)
        size = (columns * patch, rows * patch)
        return FilmSize(*size, count, round(plan.fps, 3), self.tokens(plan))

    def expected_tokens(self, film: Film) -> float:
        """About the tokens of a film, from the size of its file."""
        most = self.limits.max_tokens or self._max_context() // 2
        return min(most, film.num_bytes / BYTES_PER_TOKEN)

    # -- frames ----------------------------------------------------------------------------------
    def cached(self, film: Film, digest: bytes) -> PreparedFilm | None:
        """The film, if it was prepared with the same options. `digest` is the film's."""
        with self._lock:
            return self._cache.get((digest, film.options))

    def prepare(self, film: Film) -> PreparedFilm:
        """Decode and prepare a film on this thread."""
        digest = film.digest()
        found = self.cached(film, digest)
        if found is not None:
            return found
        where: dict[str, object] = {"param": film.where, "row": film.row}
        if film.is_frames:
            self.check_pictures(film)
            levels: list[Tensor] = []
            for i, file in enumerate(film.files):
                param = f"{film.where}[{i}]"
                pixels = decode_pixels(file, self.images, param=param, row=film.row)
                levels.append(self.add_picture(film, levels, pixels))
            return self.cut_pictures(film, digest, levels)
        facts = probe_frames(film.files[0], self.limits, **where)  # type: ignore[arg-type]
        plan = self.plan(film, facts)
        frames = decode_frames(film.files[0], plan.indices, self.limits, **where)  # type: ignore[arg-type]
        if not frames.count:
            plan = self.plan(film, self.shorter(film, facts, frames))
            frames = decode_frames(film.files[0], plan.indices, self.limits, **where)  # type: ignore[arg-type]
        return self.cut(film, digest, plan, frames)

    def shorter(self, film: Film, facts: FilmFacts, frames: FilmFrames) -> FilmFacts:
        """The facts of a film that turned out to have fewer frames than its file tells, as many as
        could be decoded. Raises `InvalidRequest` if much is missing."""
        with film.named_in_errors():
            if frames.decoded < max(LEAST_FRAMES, facts.frames // 2):
                raise InvalidRequest(
                    f"is damaged: {frames.decoded} of {facts.frames} frames can be decoded"
                )
            return FilmFacts(frames.decoded, facts.fps, facts.width, facts.height)

    def cut(self, film: Film, digest: bytes, plan: FilmPlan, frames: FilmFrames) -> PreparedFilm:
        """Prepare decoded frames. Closes their memory."""
        facts = plan.facts
        with film.named_in_errors():
            found = (frames.count, frames.width, frames.height)
            if found != (len(plan.indices), facts.width, facts.height):
                raise InvalidRequest(
                    f"is damaged: of its frames {found[0]} of {found[1]}x{found[2]} pixels can be "
                    f"decoded, not {len(plan.indices)} of {facts.width}x{facts.height}"
                )
        mapped = np.frombuffer(frames.memory.map(), np.uint8)
        frames.memory.close()
        whole = torch.from_numpy(mapped.reshape(frames.count, frames.height, frames.width, 3))
        return self._made(film, digest, plan, list(whole.unbind()))

    def add_picture(self, film: Film, before: Sequence[Tensor], pixels: Pixels) -> Tensor:
        """One frame of a film of pictures, as all `before`. Gives the memory of `pixels` back."""
        size = (pixels.height, pixels.width)
        levels = torch.frombuffer(bytearray(pixels.memory.read()), dtype=torch.uint8)
        pixels.memory.give_back()
        with film.named_in_errors():
            if before and tuple(before[0].shape[:2]) != size:
                height, width = before[0].shape[:2]
                raise InvalidRequest(
                    f"frame {len(before)} is {size[1]}x{size[0]} pixels, those before it are "
                    f"{width}x{height}"
                )
            if (len(before) + 1) * size[0] * size[1] > self.limits.max_pixels:
                raise InvalidRequest(
                    f"{len(film.files)} frames of {size[1]}x{size[0]} pixels are more than the "
                    f"{self.limits.max_pixels} pixels in all that are taken"
                )
        return levels.view(*size, 3)

    def cut_pictures(self, film: Film, digest: bytes, levels: Sequence[Tensor]) -> PreparedFilm:
        """The film of pictures with these `levels`."""
        height, width = levels[0].shape[:2]
        fps = film.options.fps or self._films.default_fps
        plan = self.plan(film, FilmFacts(len(levels), fps, width, height))
        return self._made(film, digest, plan, levels)

    def _made(
        self, film: Film, digest: bytes, plan: FilmPlan, levels: Sequence[Tensor]
    ) -> PreparedFilm:
        made = self._films.prepare(plan, levels, digest, on_device=self._on_device)
        with self._lock:
            self._cache.put((digest, film.options), made)
        return made
