"""Pictures as the decoder reads them: which are still to be encoded, and the rows of each that lie
in a part of a prompt. Keeps what was encoded; knows no pass and no page. Engine thread only.
"""

from __future__ import annotations

from predictors.chat.inputs import PlacedPicture
from predictors.chat.metrics import Observations
from predictors.chat.model import EncodedPicture
from predictors.chat.pictures import PictureRunner
from predictors.chat.sequence import Reply
from predictors.compute.caches import ByteBoundedCache


class Embeddings:
    """Decoder tokens (merged, hidden) of pictures, at most `max_bytes` of them beside those that
    sequences hold. `pictures` encodes; it is set when the weights are there."""

    def __init__(self, max_bytes: int, observations: Observations) -> None:
        self.pictures: PictureRunner
        self._observations = observations
        self._kept: ByteBoundedCache[bytes, EncodedPicture] = ByteBoundedCache(
            max_bytes,
            lambda picture: picture.features.nbytes,
            observations.cache("vision_embedding"),
        )

    def describe(self) -> dict[str, int]:
        """How much is kept. Any thread."""
        return {"entries": len(self._kept), "bytes": self._kept.num_bytes}

    def new(self, reply: Reply) -> tuple[tuple[int, int], ...]:
        """Those that `reply` must have encoded before it can read on, see `Standing.new`."""
        return tuple(
            (max(picture.start, reply.done), picture.length)
            for i, picture in enumerate(reply.work.pictures)
            if picture.start + picture.length > reply.done
            and i not in reply.embedded
            and picture.prepared.key not in self._kept
        )

    def within(self, reply: Reply, part: slice) -> list[tuple[int, EncodedPicture]]:
        """First row and embeddings (rows, hidden) of the pictures that lie in a part of the prompt.
        Encodes those that are new; may be repeated."""
        found = []
        for i, picture in enumerate(reply.work.pictures):
            first = max(picture.start, part.start)
            end = min(picture.start + picture.length, part.stop)
            if first < end:
                tokens = self._of(reply, i, picture)
                rows = tokens.part(first - picture.start, end - picture.start)
                found.append((first - part.start, rows))
        return found

    def forget(self, reply: Reply) -> None:
        """Keep the reply's pictures no longer: they are encoded anew when they come again."""
        for picture in reply.work.pictures:
            self._kept.drop(picture.prepared.key)

    def close(self) -> None:
        """Let go of all tensors and of the tower."""
        self._kept = ByteBoundedCache(0, lambda picture: picture.features.nbytes)
        self.__dict__.pop("pictures", None)

    def _of(self, reply: Reply, index: int, picture: PlacedPicture) -> EncodedPicture:
        """The picture's tokens: the sequence's own, from the cache, or newly made."""
        tokens = reply.embedded.get(index)
        if tokens is None:
            tokens = self._kept.get(picture.prepared.key)
        if tokens is None:
            started = reply.job.clock()
            tokens = self.pictures.encode(picture.prepared)
            self._kept.put(picture.prepared.key, tokens)
            self._observations.stage(reply.job, "vision_encode", reply.job.clock() - started)
        reply.embedded[index] = tokens  # the cache may drop it before the last chunk
        return tokens
