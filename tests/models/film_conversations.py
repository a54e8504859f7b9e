"""Ten films, and conversations with them, for the parity tests of every model."""

from __future__ import annotations

from fractions import Fraction

from predictors.chat.request import ChatRequest, Picture
from tests.chat.films import Clip, film, film_chat
from tests.chat.room import png

CLIPS = {
    "plain": Clip(),
    "tall and odd": Clip(frames=9, width=32, height=90, rate=Fraction(3)),
    "wide": Clip(frames=7, width=130, height=34, rate=Fraction(5)),
    "slow": Clip(frames=4, rate=Fraction(1, 2)),
    "fast": Clip(frames=40, rate=Fraction(60)),
    "television": Clip(frames=31, rate=Fraction(30000, 1001)),
    "mov": Clip("mov", frames=10),
    "vp8": Clip("vp8", frames=10),
    "vp9": Clip("vp9", frames=11, rate=Fraction(10)),
    "av1": Clip("av1", frames=10, width=64, height=64),
}


def film_conversations() -> list[ChatRequest]:
    """One per clip; some with options, text around them, pictures or a second film."""
    asked = {
        "wide": {"fps": 1.0},
        "television": {"fps": 5.0},
        "fast": {"num_frames": 6},
        "vp9": {"num_frames": 4},
    }
    films = {name: film(clip, **asked.get(name, {})) for name, clip in CLIPS.items()}
    rest = {
        "mov": (films["vp8"], Picture(png(4, 60, 40)), "compare"),
        "av1": (" <", Picture(png(5)), "and"),
    }
    return [
        film_chat("look (", each, *rest.get(name, ("what moves?",))) for name, each in films.items()
    ]
