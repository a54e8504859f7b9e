"""What the pages of a prompt are called, so that prompts that begin alike can share them. Pure
hashing; knows no page number, no device and no caller.

A page's name is a hash of the name before it, of its own tokens and of the pictures in it, so equal
names mean equal prompts up to the page's end: equal tokens, pixels and rotary positions (these
follow from the tokens and the pictures' grids). Picture tokens alone would not do: they are the
same for every picture.
"""

from __future__ import annotations

from hashlib import blake2b

from predictors.chat.inputs import ChatWork
from predictors.settings import QwenVLSettings

NAME_BYTES = 32  # collisions are out of reach, also for somebody who looks for one


def page_names(work: ChatWork, page_tokens: int) -> tuple[bytes, ...]:
    """Names of the full pages of a prompt, in order, but for one whose last token is the prompt's:
    at least one token is always computed, because the answer begins with its logits.
    """
    count = (work.num_prompt_tokens - 1) // page_tokens
    tokens = work.tokens.numpy()
    names: list[bytes] = []
    name = bytes(NAME_BYTES)
    for first in range(0, count * page_tokens, page_tokens):
        end = first + page_tokens
        found = blake2b(name, digest_size=NAME_BYTES)
        found.update(tokens[first:end].tobytes())  # of one length, so that nothing can shift
        for picture in work.pictures:
            if picture.start < end and first < picture.start + picture.length:
                key, grid = picture.prepared.key, picture.prepared.grid
                place = repr((len(key), grid, first - picture.start, picture.length))
                found.update(place.encode() + key)
        name = found.digest()
        names.append(name)
    return tuple(names)


def keeps_prefixes(settings: QwenVLSettings, is_cuda: bool, is_deterministic: bool) -> bool:
    """Whether prompts share pages. `auto`: on a GPU, unless an answer must not depend on what came
    before (how a prompt is cut into passes can move last bits).
    """
    is_auto = settings.prefix_cache == "auto" and is_cuda and not is_deterministic
    return settings.prefix_cache == "on" or is_auto
