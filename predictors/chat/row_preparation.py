"""Prepares requests without blocking the event loop: worker processes decode pictures and films,
pool threads cut these into patches and assemble the prompt.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from predictors.base import INLINE_BYTES
from predictors.chat.film import Film
from predictors.chat.film_decoding import FilmDecoder, OffLoop
from predictors.chat.inputs import ChatPreparer
from predictors.chat.request import ChatRequest, Picture
from predictors.chat.vision.films import PreparedFilm
from predictors.chat.vision.pixels import PreparedPicture
from predictors.chat.work import ChatWork
from predictors.protocol.images.decode import Pixels
from predictors.protocol.images.memory import decoding_bytes
from predictors.protocol.tasks import DECODE_PICTURE
from predictors.settings import ImageLimits
from predictors.workers.pool import LARGE_TASK_BYTES, Workers

DIGEST_INLINE_BYTES = 256 * 1024
"""Larger files are hashed off the event loop; one of this size takes a quarter of a millisecond."""


class RowPreparation:
    """Prepares the requests of one model. Event loop. `off_loop` is its predictor's."""

    def __init__(self, preparer: ChatPreparer, limits: ImageLimits, off_loop: OffLoop) -> None:
        self._preparer = preparer
        self._limits = limits
        self._off_loop = off_loop

    async def prepare(self, request: ChatRequest, workers: Workers) -> ChatWork:
        """The work for a request. Its pictures are decoded one after the other."""
        prepared: list[PreparedPicture] = []
        pictures = request.pictures
        is_large = request.num_chars > INLINE_BYTES or request.has_large_format
        for picture in pictures:
            self._preparer.check_pictures(prepared)
            digest = await self._digest(picture)
            found = self._preparer.cached(picture, digest)
            if found is not None:
                prepared.append(found)
                continue
            is_last = len(prepared) + 1 == len(pictures) and not request.films
            num_bytes = decoding_bytes(picture.raw, self._limits.max_pixels)
            is_large = is_large or num_bytes > LARGE_TASK_BYTES
            async with self._decoded(workers, picture, num_bytes) as pixels:
                if is_last:  # together with the next stage: one thread hop less
                    prepare_last = partial(self._prepare_and_assemble, request, prepared)
                    return await self._off_loop(
                        prepare_last, picture, digest, pixels, is_large=is_large
                    )
                prepare = self._preparer.prepare_pixels
                found = await self._off_loop(prepare, picture, digest, pixels, is_large=is_large)
                prepared.append(found)
        films = [await self._film(film, request, workers) for film in request.films]
        assemble = self._preparer.assemble
        return await self._off_loop(assemble, request, prepared, films, is_large=is_large)

    async def _film(self, film: Film, request: ChatRequest, workers: Workers) -> PreparedFilm:
        films = self._preparer.films_of(request)
        digest = await self._digest(film)
        found = films.cached(film, digest)
        if found is None:
            decoded = partial(self._decoded, workers)
            decoder = FilmDecoder(films, workers, self._off_loop, decoded)
            found = await decoder.prepare(film, digest)
        return found

    @asynccontextmanager
    async def _decoded(
        self, workers: Workers, picture: Picture, num_bytes: int
    ) -> AsyncIterator[Pixels]:
        """The picture's pixels, decoded by a worker. Their memory is held until the block ends."""
        async with AsyncExitStack() as stack:
            with picture.named_in_errors():
                await stack.enter_async_context(workers.memory(num_bytes))
                pixels = await workers.run_within(
                    DECODE_PICTURE,
                    picture.raw,
                    self._limits,
                    picture.where,
                    picture.row,
                    memory_bytes=num_bytes,
                )
            yield pixels

    async def _digest(self, sent: Picture | Film) -> bytes:
        if sent.num_bytes <= DIGEST_INLINE_BYTES:
            return sent.digest()
        return await self._off_loop(sent.digest)

    def _prepare_and_assemble(
        self,
        request: ChatRequest,
        prepared: Sequence[PreparedPicture],
        picture: Picture,
        digest: bytes,
        pixels: Pixels,
    ) -> ChatWork:
        last = self._preparer.prepare_pixels(picture, digest, pixels)
        return self._preparer.assemble(request, [*prepared, last])
