"""From the fields of a chat body that are about a film to the film of a request. Any thread."""

from __future__ import annotations

from dataclasses import asdict

from predictors.chat.film import Film, FilmOptions
from predictors.chat.pixel_bounds import PixelBounds, PixelLimits
from predictors.protocol.openai.chat_body import ChatBody
from predictors.protocol.openai.film_fields import FilmPart, RequestedFrames


def film_of(part: FilmPart, body: ChatBody, limits: PixelLimits) -> Film:
    """The film of a message. What it does not ask for itself is as the body asks for all films.
    Raises `InvalidRequest` for pixels that this server does not read."""
    own, common = part.pixels, body.pixels
    least = own.min_pixels or common.min_pixels
    most = own.max_pixels or limits.of_detail(own.detail) or common.max_pixels
    limits.choose(least, most, part.where)
    asked = asdict(part.frames.over(body.frames))
    options = FilmOptions(**asked, min_pixels=least, max_pixels=most)
    return Film(part.files, part.is_frames, options, part.where)


def film_options(frames: RequestedFrames, bounds: PixelBounds | None) -> FilmOptions:
    """The options of all films of a V2 request."""
    if bounds is None:
        return FilmOptions(**asdict(frames))
    pixels = {"min_pixels": bounds.min_pixels, "max_pixels": bounds.max_pixels}
    return FilmOptions(**asdict(frames), **pixels)
