"""Which terminals are shown pictures, and the codes that they are sent."""

from __future__ import annotations

import base64
import re
from io import BytesIO

import pytest
from PIL import Image

from predictors.cli.terminal_pictures import ITERM2, KITTY, SIXEL, picture_codes, picture_protocol
from tests.http.echo import png


@pytest.mark.parametrize(
    ("environ", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, KITTY),
        ({"TERM_PROGRAM": "ghostty"}, KITTY),
        ({"TERM_PROGRAM": "iTerm.app"}, ITERM2),
        ({"TERM_PROGRAM": "WezTerm"}, ITERM2),
        ({"TERM": "foot"}, SIXEL),
        ({"TERM": "xterm-256color"}, ""),
        ({"TERM": "dumb"}, ""),
        ({}, ""),
        ({"TERM": "screen", "KITTY_WINDOW_ID": "1"}, ""),
        ({"TERM_PROGRAM": "iTerm.app", "TMUX": "/tmp/x"}, ""),
    ],
    ids=lambda value: None,
)
def test_the_environment_says_what_a_terminal_can_show(
    environ: dict[str, str], protocol: str
) -> None:
    assert picture_protocol(environ) == protocol


def test_kitty_and_iterm2_get_the_file_itself() -> None:
    file = png(size=(300, 300))
    kitty = picture_codes(file, KITTY)
    parts = re.findall(r"\x1b_G[^;]*;([^\x1b]*)\x1b\\", kitty)
    assert base64.b64decode("".join(parts)) == file
    assert kitty.startswith("\x1b_Ga=T,f=100,m=")
    iterm2 = picture_codes(file, ITERM2)
    assert base64.b64decode(iterm2.partition(":")[2].rstrip("\a\n")) == file


def test_sixels_read_back_are_the_picture() -> None:
    picture = Image.new("RGB", (20, 13), (255, 0, 0))
    picture.paste((0, 0, 255), (5, 3, 12, 9))
    file = BytesIO()
    picture.save(file, "PNG")
    codes = picture_codes(file.getvalue(), SIXEL)
    assert unsixel(codes) == list(picture.get_flattened_data())


def unsixel(codes: str) -> list[tuple[int, int, int]]:
    """The pixels that a sixel terminal would show."""
    head, body = codes.removeprefix("\x1bPq").removesuffix("\x1b\\\n"), ""
    width, height = (int(n) for n in re.match(r'"1;1;(\d+);(\d+)', head).groups())  # type: ignore[union-attr]
    body = head.partition(f"{width};{height}")[2]
    palette: dict[int, tuple[int, ...]] = {}
    pixels: dict[tuple[int, int], tuple[int, ...]] = {}
    x = top = colour = 0
    for found in re.finditer(r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)(.)|([$-])|([?-~])", body):
        index, *parts, count, repeated, move, once = found.groups()
        if index is not None:
            colour = int(index)
            if parts[0] is not None:
                palette[colour] = tuple(round(int(part) * 2.55) for part in parts)
        elif move:
            x, top = 0, top + 6 * (move == "-")
        else:
            end, bits = x + int(count or 1), ord(repeated or once) - 63
            set_bits = [bit for bit in range(6) if bits >> bit & 1]
            shown = [(column, top + bit) for column in range(x, end) for bit in set_bits]
            pixels |= dict.fromkeys(shown, palette[colour])
            x = end
    return [pixels[x, y] for y in range(height) for x in range(width)]  # type: ignore[misc]
