"""Shows a picture in a terminal that can: kitty's, iTerm2's or the sixel protocol.

Environment variables say which one a terminal has: asking the terminal itself would wait for one
that does not answer.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from io import BytesIO

from PIL import Image

KITTY, ITERM2, SIXEL = "kitty", "iterm2", "sixel"
KITTY_CHUNK = 4096
SIXEL_COLOURS = 64
MAX_SIXEL_SIDE = 512


def picture_protocol(environ: Mapping[str, str]) -> str:
    """The protocol of the terminal that `environ` is of, or an empty string.

    Inside of tmux and screen there is none: they do not pass pictures on.
    """
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get("TMUX") or environ.get("STY") or term.startswith(("screen", "tmux")):
        return ""
    if environ.get("KITTY_WINDOW_ID") or term == "xterm-kitty" or program == "ghostty":
        return KITTY
    if environ.get("KONSOLE_VERSION"):
        return KITTY
    iterm2 = {"iTerm.app", "WezTerm", "mintty"}
    if program in iterm2 or environ.get("LC_TERMINAL") == "iTerm2":
        return ITERM2
    return SIXEL if "sixel" in term or term.startswith(("foot", "mlterm", "yaft")) else ""


def picture_codes(file: bytes, protocol: str) -> str:
    """The escape codes that show the picture `file`. Raises `OSError` for a file that is none."""
    with Image.open(BytesIO(file)) as picture:
        picture.load()
        if protocol == ITERM2:
            name = base64.b64encode(file).decode()
            return f"\x1b]1337;File=inline=1;size={len(file)}:{name}\a\n"
        if protocol == KITTY:
            return "".join(_kitty(file if picture.format == "PNG" else _as_png(picture))) + "\n"
        return _sixel(picture.convert("RGB"))


def _as_png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.convert("RGB").save(file, "PNG")
    return file.getvalue()


def _kitty(png: bytes) -> Iterator[str]:
    text = base64.b64encode(png).decode()
    for start in range(0, len(text), KITTY_CHUNK):
        more = int(start + KITTY_CHUNK < len(text))
        first = "a=T,f=100," if start == 0 else ""
        yield f"\x1b_G{first}m={more};{text[start : start + KITTY_CHUNK]}\x1b\\"


def _sixel(picture: Image.Image) -> str:
    picture.thumbnail((MAX_SIXEL_SIDE, MAX_SIXEL_SIDE))
    paletted = picture.quantize(SIXEL_COLOURS)
    width, height = paletted.size
    colours = paletted.getpalette() or []
    parts = [f'\x1bPq"1;1;{width};{height}']
    for index in range(len(colours) // 3):
        red, green, blue = (
            round(value * 100 / 255) for value in colours[3 * index : 3 * index + 3]
        )
        parts.append(f"#{index};2;{red};{green};{blue}")
    pixels = paletted.tobytes()
    for top in range(0, height, 6):
        rows = [pixels[y * width : (y + 1) * width] for y in range(top, min(top + 6, height))]
        bands = [_band(rows, colour) for colour in sorted(set(b"".join(rows)))]
        parts.append("$".join(bands) + "-")
    return "".join(parts) + "\x1b\\\n"


def _band(rows: list[bytes], colour: int) -> str:
    """Six rows of one colour, equal columns as counts."""
    columns = [
        chr(63 + sum((value == colour) << bit for bit, value in enumerate(column)))
        for column in zip(*rows, strict=True)
    ]
    text, start = [f"#{colour}"], 0
    for end in range(1, len(columns) + 1):
        if end == len(columns) or columns[end] != columns[start]:
            count = end - start
            text.append(f"!{count}{columns[start]}" if count > 3 else columns[start] * count)
            start = end
    return "".join(text)
