"""Films on their way through the worker processes that decode them. Event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from torch import Tensor

from predictors.chat.film import Film
from predictors.chat.film_inputs import FilmPreparer
from predictors.chat.request import (
    Picture,
)
from predictors.chat.vision.films import FilmPlan, PreparedFilm
from predictors.errors import InvalidRequest
from predictors.protocol.films.decode import FilmFacts
from predictors.protocol.films.memory import frames_bytes, probing_bytes
from predictors.protocol.images.decode import Pixels
from predictors.protocol.images.memory import decoding_bytes
from predictors.protocol.tasks import DECODE_FILM, PROBE_FILM
from predictors.workers.pool import Workers

TRIES = 2  # to decode a film, whose file may have fewer frames than it tells
DecodedPicture = Callable[[Picture, int], AbstractAsyncContextManager[Pixels]]
"""The pixels of a picture, by a worker that takes so many bytes for it."""


T = TypeVar("T")


class OffLoop(Protocol):
    """`BasePredictor.off_loop`."""

    def __call__(
        self, work: Callable[..., T], *args: Any, is_large: bool = False
    ) -> Awaitable[T]: ...


class FilmDecoder:
    """Prepares films for one model: workers decode, threads cut."""

    def __init__(
        self,
        films: FilmPreparer,
        workers: Workers,
        off_loop: OffLoop,
        decoded: DecodedPicture,
    ) -> None:
        self._films = films
        self._workers = workers
        self._off_loop = off_loop
        self._decoded = decoded

    async def prepare(self, film: Film, digest: bytes) -> PreparedFilm:
        """The film with this digest. Raises `InvalidRequest` for one that can't be read, before it
        is decoded where its header tells."""
        if film.is_frames:
            return await self._prepare_pictures(film, digest)
        facts = await self._probe(film)
        for _ in range(TRIES):
            plan = self._films.plan(film, facts)
            made = await self._decode(film, digest, plan)
            if isinstance(made, PreparedFilm):
                return made
            facts = made
        raise InvalidRequest(
            f"{film.where} is damaged: its frames can't be counted",
            param=film.where,
            row=film.row,
        )

    async def _probe(self, film: Film) -> FilmFacts:
        raw, limits = film.files[0], self._films.limits
        num_bytes = probing_bytes(len(raw), limits.max_frame_pixels)
        with film.named_in_errors():
            facts: FilmFacts = await self._workers.run(
                PROBE_FILM, raw, limits, film.where, film.row, memory_bytes=num_bytes
            )
        return facts

    async def _decode(self, film: Film, digest: bytes, plan: FilmPlan) -> PreparedFilm | FilmFacts:
        """The film, or other facts if it has fewer frames. The memory of decoded frames is held
        until they are cut."""
        raw, facts = film.files[0], plan.facts
        num_bytes = frames_bytes(facts, len(plan.indices), len(raw))
        with film.named_in_errors():
            async with self._workers.memory(num_bytes):
                frames = await self._workers.run_within(
                    DECODE_FILM, raw, facts, plan.indices, self._films.limits, film.where, film.row,
                    memory_bytes=num_bytes,
                )  # fmt: skip
                if not frames.count:
                    return self._films.shorter(film, facts, frames)
                made: PreparedFilm = await self._off_loop(
                    self._films.cut, film, digest, plan, frames, is_large=True
                )
                return made

    async def _prepare_pictures(self, film: Film, digest: bytes) -> PreparedFilm:
        """A film of pictures, which are decoded one after the other."""
        films, levels = self._films, list[Tensor]()
        films.check_pictures(film)
        for i, file in enumerate(film.files):
            picture = Picture(file, f"{film.where}[{i}]", film.row)
            num_bytes = decoding_bytes(file, films.images.max_pixels)
            async with self._decoded(picture, num_bytes) as pixels:
                levels.append(await self._off_loop(films.add_picture, film, levels, pixels))
        made: PreparedFilm = await self._off_loop(
            films.cut_pictures, film, digest, levels, is_large=True
        )
        return made
