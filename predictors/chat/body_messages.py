"""Makes a request's message from a message of a chat body: its pictures and films get the pixels
that they or the body ask for. Any thread.
"""

from __future__ import annotations

from predictors.chat.film import Film
from predictors.chat.film_fields import film_of
from predictors.chat.pixel_bounds import PixelBounds, PixelLimits
from predictors.chat.request import Message, Picture
from predictors.protocol.openai.chat_body import ChatBody
from predictors.protocol.openai.conversation import BodyMessage, MessagePart
from predictors.protocol.openai.film_fields import FilmPart


def message_of(
    turn: BodyMessage, body: ChatBody, limits: PixelLimits, common: PixelBounds | None
) -> Message:
    """The request's message for `turn`. `common` are the bounds that the body asks for all
    pictures; a picture's own replace them. Raises `InvalidRequest` for pixels that this server does
    not read."""
    asked = body.pixels

    def part_of(part: MessagePart) -> str | Picture | Film:
        if isinstance(part, str):
            return part
        if isinstance(part, FilmPart):
            return film_of(part, body, limits)
        own, bounds = part.pixels, common
        least, most = own.min_pixels, own.max_pixels or limits.of_detail(own.detail)
        if least or most:
            least, most = least or asked.min_pixels, most or asked.max_pixels
            bounds = limits.choose(least, most, part.where)
        return Picture(part.file, part.where, bounds=bounds)

    parts = tuple(map(part_of, turn.parts))
    return Message(turn.role, parts, turn.calls, turn.call_id, turn.calls_at)
