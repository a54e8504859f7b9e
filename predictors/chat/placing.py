"""Places pictures and films in the tokens of a prompt: where each begins, and the tokens that stand
for their patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from predictors.chat.decoder.rotary import VisionSpan
from predictors.chat.model import ChatModel
from predictors.chat.template_checks import VIDEO_TOKEN
from predictors.chat.vision.films import PreparedFilm, span_at
from predictors.chat.vision.pixels import PreparedPicture
from predictors.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class PlacedPicture:
    """A picture, or a step of a film, whose `length` tokens start at index `start` of the prompt.
    `time` are rotary positions since the film's beginning."""

    start: int
    length: int
    prepared: PreparedPicture
    time: int = 0


@dataclass(slots=True)
class PlacedPrompt:
    """The tokens of a prompt, a picture's repeated for all its patches; its pictures, the steps of
    its films among them, and where each picture and film lies."""

    tokens: list[int] = field(default_factory=list)
    pictures: list[PlacedPicture] = field(default_factory=list)
    spans: list[VisionSpan] = field(default_factory=list)


def placed_prompt(
    tokens: Sequence[int],
    pictures: Sequence[PreparedPicture],
    films: Sequence[PreparedFilm],
    model: ChatModel,
) -> PlacedPrompt:
    """The prompt of `tokens` that have one image token per picture and one video token per span of
    a film. Raises `InvalidRequest` if the template left one out."""
    wanted, given = len(pictures), sum(len(film.spans) for film in films)
    if tokens.count(model.image_token) != wanted:
        message = "the chat template has no place for these pictures"
        raise InvalidRequest(message, param="messages")
    if films and tokens.count(model.video_token) != given:
        raise InvalidRequest("the chat template has no place for these films", param="messages")
    if not wanted and not films:
        return PlacedPrompt(list(tokens))
    prompt, stills, spans = PlacedPrompt(), iter(pictures), _spans(films)
    for token in tokens:
        if token == model.image_token:
            _add_picture(prompt, token, next(stills), model.pictures.merge)
        elif films and token == model.video_token:
            _add_span(prompt, token, *next(spans), model.pictures.merge)
        else:
            prompt.tokens.append(token)
    return prompt


def _spans(films: Sequence[PreparedFilm]) -> Iterator[tuple[PreparedFilm, int, int]]:
    """Each span: its film, its number there, and the first of its steps."""
    for film in films:
        first = 0
        for i, (steps, _) in enumerate(film.spans):
            yield film, i, first
            first += steps


def _add_picture(prompt: PlacedPrompt, token: int, picture: PreparedPicture, merge: int) -> None:
    rows, columns = (side // merge for side in picture.grid)
    start = len(prompt.tokens)
    prompt.spans.append(VisionSpan(start, rows, columns))
    prompt.pictures.append(PlacedPicture(start, rows * columns, picture))
    prompt.tokens += [token] * (rows * columns)


def _add_span(
    prompt: PlacedPrompt, token: int, film: PreparedFilm, number: int, first: int, merge: int
) -> None:
    span = span_at(len(prompt.tokens), film, number, merge)
    length = span.rows * span.columns
    prompt.spans.append(span)
    steps = film.steps[first : first + span.steps]
    for i, (step, time) in enumerate(zip(steps, span.times().tolist(), strict=True)):
        prompt.pictures.append(PlacedPicture(span.start + i * length, length, step, time))
    prompt.tokens += [token] * (span.steps * length)


def written_films(rendered: str, films: Sequence[str]) -> str:
    """A rendered conversation with the text of each film in the place of its video token. Raises
    `InvalidRequest` if it has not as many."""
    pieces = rendered.split(VIDEO_TOKEN)
    if len(pieces) != len(films) + 1:
        raise InvalidRequest("the chat template has no place for these films", param="messages")
    parts = [pieces[0]]
    for film, piece in zip(films, pieces[1:], strict=True):
        parts += [film, piece]
    return "".join(parts)
