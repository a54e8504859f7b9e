"""Makes the work of a request: tokens, rotary positions, prepared pictures. Pool threads.

Template, tokenizer and image preparation are transformers' own, so that prompts and patches are
exactly what the checkpoint was trained on. Where the device prepares pictures, they are only
decoded here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch

from predictors import metrics
from predictors.chat.answer_lengths import AnswerLengths
from predictors.chat.constraints import AnswerGrammar
from predictors.chat.film_inputs import FilmPreparer
from predictors.chat.grammars.compiler import GrammarCompiler
from predictors.chat.limits import pixel_limits, why_no_films
from predictors.chat.model import ChatModel
from predictors.chat.pixel_bounds import PixelBounds
from predictors.chat.placing import placed_prompt
from predictors.chat.prompt_texts import PromptTexts
from predictors.chat.prompt_tokens import PromptTokens
from predictors.chat.request import (
    CHARS_PER_TOKEN,
    USUAL_PROMPT,
    ChatRequest,
    Message,
    Picture,
    PictureSize,
    PromptOptions,
    PromptSize,
    chars_of,
)
from predictors.chat.template_checks import takes_films
from predictors.chat.tools.call_grammar import tags_are_tokens, tools_format
from predictors.chat.vision.films import PreparedFilm
from predictors.chat.vision.pixels import PreparedPicture
from predictors.chat.work import PROMPT_TOKENS_PER_STEP, ChatWork, least_tokens
from predictors.compute.caches import ByteBoundedCache
from predictors.errors import InvalidRequest, PromptTooLong
from predictors.protocol.images.decode import Pixels, decode_pixels
from predictors.protocol.openai.chat_body import NO_LIMIT
from predictors.protocol.openai.tool_fields import OfferedTools
from predictors.settings import FilmLimits, ImageLimits, QwenVLSettings

PICTURE_CACHE_BYTES = 64 * 2**20
"""Size of the cache of prepared pictures: `n` answers, or a repeated picture, prepare it once."""
LESS = "lower max_pixels or ask for detail low to read pictures smaller"
PIXELS_PER_BYTE = 10  # of a file; few photographs are packed closer


class ChatPreparer:
    """Prepares the requests to one model. Thread-safe.

    `max_context` returns the engine's, which its memory may lower while it loads. `on_device`: the
    device cuts pictures into patches; else they are cut here, exactly as by transformers.
    """

    def __init__(
        self,
        name: str,
        model: ChatModel,
        settings: QwenVLSettings,
        limits: ImageLimits,
        max_context: Callable[[], int],
        on_device: bool = False,
        film_limits: FilmLimits = FilmLimits(),  # noqa: B008 - frozen
        lengths: AnswerLengths | None = None,
    ) -> None:
        """`lengths` are the engine's, which observes them."""
        self._name = name
        self._model = model
        self._limits = limits
        self._max_context = max_context
        self._on_device = on_device
        # pinned, since copying megabytes later would hold the engine's thread up
        self._pins = on_device and torch.cuda.is_available()
        self._default_max_tokens = settings.default_max_tokens
        self.lengths = AnswerLengths() if lengths is None else lengths
        self.pixels = pixel_limits(settings, model.pictures)
        self.convention = model.coordinates
        self.texts = PromptTexts(model)
        self._tags_are_tokens = tags_are_tokens(model.tokenizer)
        self._grammars = GrammarCompiler(model.tokenizer, model.shape.vocab, model.end_tokens)
        self.tokens = PromptTokens(model, self.texts, max_context)
        self.no_films = why_no_films(settings, model)
        """Why films are refused; empty if they are taken."""
        self.films: FilmPreparer | None = None
        if not self.no_films:
            self.films = FilmPreparer(
                model, film_limits, limits, self.pixels, max_context, on_device
            )
        self._lock = threading.Lock()
        self._cache: ByteBoundedCache[tuple[bytes, PixelBounds], PreparedPicture]
        self._cache = ByteBoundedCache(PICTURE_CACHE_BYTES, lambda picture: picture.values.nbytes)

    def prepare(self, request: ChatRequest) -> ChatWork:
        """The work for one request, its pictures decoded on this thread. Raises `InvalidRequest`
        for a picture that can't be read and for a prompt that does not fit."""
        pictures: list[PreparedPicture] = []
        for picture in request.pictures:
            self.check_pictures(pictures)
            pictures.append(self.prepare_picture(picture))
        sent = request.films
        films = [self.films_of(request).prepare(film) for film in sent] if sent else []
        return self.assemble(request, pictures, films)

    def films_of(self, request: ChatRequest) -> FilmPreparer:
        """The preparer of a request's films. Raises `InvalidRequest` where these are refused."""
        if self.films is None:
            raise InvalidRequest(f"films are not taken: {self.no_films}")
        self.films.check_adapters(request.adapters)
        return self.films

    def check_films(self) -> None:
        """Refuse films from now on if the chat template has no place for them."""
        if not takes_films(self.tokens_of, self._model.video_token):
            self.films, self.no_films = None, "the chat template has no place for films"

    def assemble(
        self,
        request: ChatRequest,
        pictures: Sequence[PreparedPicture],
        films: Sequence[PreparedFilm] = (),
    ) -> ChatWork:
        raw = request.raw_prompt
        if raw is None:
            written = [film.text for film in films]
            tokens = self.tokens_of(request.messages, request.prompt, request.tools, written)
        else:
            tokens = self.tokens.of_raw(raw)
        placed = placed_prompt(tokens, pictures, films, self._model)
        positions, next_position = self._model.positions(len(placed.tokens), placed.spans)
        lengths = [each.length for each in placed.pictures]
        max_tokens = self._max_tokens(len(placed.tokens), request.max_tokens, lengths)
        return ChatWork(
            tokens=torch.from_numpy(np.array(placed.tokens, np.int64)),
            positions=positions,
            next_position=next_position,
            pictures=tuple(placed.pictures),
            sampling=request.sampling,
            seed=request.seed,
            max_tokens=max_tokens,
            stop=request.stop,
            ignore_eos=request.ignore_eos,
            expected_tokens=self._expected_tokens(request, max_tokens),
            is_open=request.is_open,
            adapters=request.adapters,
            coordinates=request.coordinates,
            films=tuple(self.films_of(request).size(film) for film in films),
            controls=request.controls,
            text=request.text,
            grammar=self._grammar(request),
        )

    def _grammar(self, request: ChatRequest) -> AnswerGrammar | None:
        """The grammar of the request's answer format and of calls of its tools; None without
        either. Raises `InvalidRequest`. Called once the prompt is known to fit: it may take tens of
        milliseconds."""
        wanted, tools = request.answer_format, request.tools
        if tools is not None:
            wanted = tools_format(tools, wanted, tags_are_tokens=self._tags_are_tokens)
        return None if wanted is None else self._grammars.compile(wanted)

    def cost(self, request: ChatRequest) -> float:
        """An estimate of `ChatWork.cost` from characters and sizes of files, without making the
        work."""
        most_tokens, prompt_cost = self._estimate(request)
        return self._expected_tokens(request, most_tokens) + prompt_cost

    def least_cost(self, request: ChatRequest) -> float:
        """As `cost`, for the shortest answer."""
        most_tokens, prompt_cost = self._estimate(request)
        return least_tokens(request, most_tokens, request.is_constrained) + prompt_cost

    def _estimate(self, request: ChatRequest) -> tuple[int, float]:
        """The most tokens of the answer, and the estimated cost of the prompt."""
        tokens = request.num_chars / CHARS_PER_TOKEN
        for message in request.messages:
            for part in message.parts:
                if isinstance(part, Picture):
                    most = min(self._bounds(part).max_pixels, len(part.raw) * PIXELS_PER_BYTE)
                    tokens += most / self.pixels.token_pixels
                elif self.films is not None and not isinstance(part, str):
                    tokens += self.films.expected_tokens(part)
        context, wanted = self._max_context(), request.max_tokens
        tokens = min(tokens, context)  # more are refused later
        if wanted is None or wanted == NO_LIMIT:
            most_tokens = self._open_answer(wanted, max(1, context - int(tokens)))
        else:
            most_tokens = min(context, wanted)
        return most_tokens, tokens / PROMPT_TOKENS_PER_STEP

    def _expected_tokens(self, request: ChatRequest, max_tokens: int) -> float:
        if request.ignore_eos:
            return max_tokens
        expected = self.lengths.expected(max_tokens, is_open=request.is_open)
        return max(expected, request.controls.min_tokens)

    # -- pictures --------------------------------------------------------------------------------
    def prepare_picture(self, picture: Picture) -> PreparedPicture:
        """Decode and prepare one picture on this thread."""
        digest = picture.digest()
        found = self.cached(picture, digest)
        if found is None:
            where, row = picture.where, picture.row
            pixels = decode_pixels(picture.raw, self._limits, param=where, row=row)
            found = self.prepare_pixels(picture, digest, pixels)
        return found

    def cached(self, picture: Picture, digest: bytes) -> PreparedPicture | None:
        """The picture, if its file was prepared for the same bounds. `digest` is the file's."""
        with self._lock:
            found = self._cache.get((digest, self._bounds(picture)))
        if found is not None:
            metrics.input_image_pixels.labels(self._name).observe(found.pixels)
        return found

    def prepare_pixels(self, picture: Picture, digest: bytes, pixels: Pixels) -> PreparedPicture:
        """Prepare a decoded picture, see `PicturePreparation`. Gives the memory of `pixels`
        back."""
        bounds, images = self._bounds(picture), self._model.pictures
        try:
            grid = images.grid_of(pixels.height, pixels.width, bounds)
        except ValueError as error:  # sides too different, or no pixel left after resizing
            problem = f"of {pixels.width}x{pixels.height} pixels can't be cut into patches"
            message = f"{picture.where} {problem}"
            raise InvalidRequest(message, param=picture.where, row=picture.row) from error
        with picture.named_in_errors():
            self._check_grid(grid, bounds, pixels, picture.where)
        levels = torch.empty(
            (pixels.height, pixels.width, 3), dtype=torch.uint8, pin_memory=self._pins
        )
        pixels.memory.read_into(levels.numpy().reshape(-1).data)
        pixels.memory.give_back()
        values, layout = images.prepare(levels, bounds, grid, on_device=self._on_device)
        # two bounds that give one grid give one picture
        key = digest + repr((grid, layout)).encode()
        size = (pixels.width, pixels.height)
        made = PreparedPicture(key, grid, size[0] * size[1], values, layout, size)
        with self._lock:
            self._cache.put((digest, bounds), made)
        metrics.input_image_pixels.labels(self._name).observe(made.pixels)
        return made

    def check_pictures(self, pictures: Sequence[PreparedPicture]) -> None:
        """Raise `InvalidRequest` for pictures that leave no place in the context, before more of
        them are prepared."""
        tokens = sum(self._tokens(picture.grid) for picture in pictures)
        if tokens >= self._max_context():
            share = _of_pictures(tokens, len(pictures))
            raise PromptTooLong.of(self._max_context(), f"more than {tokens}", share=share)

    def sizes(self, work: ChatWork) -> tuple[PromptSize, ...]:
        """The sizes at which the work's pictures, and then its films, are read."""
        patch = self._model.pictures.patch
        pictures = tuple(
            PictureSize(columns * patch, rows * patch, picture.length, *picture.prepared.file_size)
            for picture in work.pictures
            if picture.prepared.frames == 1
            for rows, columns in (picture.prepared.grid,)
        )
        return pictures + work.films

    def _check_grid(
        self, grid: tuple[int, int], bounds: PixelBounds, file: Pixels, where: str
    ) -> None:
        """Raise `InvalidRequest` for a size that this server does not read, before it is made."""
        patch, limit = self._model.pictures.patch, self.pixels.max_pixels
        rows, columns = grid
        area, tokens = rows * columns * patch**2, self._tokens(grid)
        size = f"{file.width}x{file.height} pixels read as {columns * patch}x{rows * patch}"
        if area > limit and bounds.min_pixels > self.pixels.min_pixels:
            raise InvalidRequest(
                f"{size}, {area} in all, for min_pixels {bounds.min_pixels}; this "
                f"server reads {limit} (setting qwen_vl.max_pixels): lower min_pixels"
            )
        if tokens >= self._max_context():
            share = f"{tokens} of them for {where}, {size} ({LESS})"
            raise PromptTooLong.of(self._max_context(), f"more than {tokens}", share=share)

    def _bounds(self, picture: Picture) -> PixelBounds:
        return picture.bounds or self.pixels.default

    def _tokens(self, grid: tuple[int, int]) -> int:
        return grid[0] * grid[1] // self._model.pictures.merge**2

    # -- text ------------------------------------------------------------------------------------
    def tokens_of(
        self,
        messages: Sequence[Message],
        options: PromptOptions = USUAL_PROMPT,
        tools: OfferedTools | None = None,
        films: Sequence[str] = (),
    ) -> list[int]:
        """Tokens of the whole conversation and, unless `options` say otherwise, the opening of the
        answer; one image token per picture. `films` are the texts in the places of films.

        A control token in a caller's text is read as plain text: a caller can't end a turn or claim
        a picture by writing its token.
        """
        self.tokens.check_length(chars_of(messages, tools))
        pieces = self.texts.rendered(messages, options, tools, films)
        if options.variables != USUAL_PROMPT.variables:  # a template may repeat them
            self.tokens.check_length(sum(map(len, pieces)))
        return self.tokens.encode(pieces)

    def _max_tokens(self, num_prompt: int, wanted: int | None, pictures: Sequence[int]) -> int:
        """Tokens that an answer may have; `pictures` are the tokens of each picture."""
        context = self._max_context()
        left = context - num_prompt
        share = _of_pictures(sum(pictures), len(pictures)) if pictures else ""
        if left < 1:
            raise PromptTooLong.of(context, num_prompt, share=share)
        if wanted is not None and wanted > left:
            raise PromptTooLong.of(context, num_prompt, wanted, share=share)
        if wanted is None or wanted == NO_LIMIT:
            return self._open_answer(wanted, left)
        return wanted

    def _open_answer(self, wanted: int | None, left: int) -> int:
        """Most tokens of an answer whose request names none, where the context leaves so many."""
        most = self._default_max_tokens if wanted is None else 0
        return min(most, left) if most else left


def _of_pictures(tokens: int, count: int) -> str:
    noun = "picture" if count == 1 else "pictures"
    return f"{tokens} of them for {count} {noun} ({LESS})"
