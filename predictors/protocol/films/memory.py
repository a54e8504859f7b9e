"""Estimates the memory that decoding a film takes, from the numbers of its file and its frames."""

from __future__ import annotations

from predictors.protocol.films.decode import FilmFacts

PER_PIXEL = 3  # of red, green and blue
HELD_FRAMES = 20  # that a decoder refers to, or is in the middle of
PER_PIXEL_HELD = 3  # of half as many colours as pixels, in 16 bits
MIN_BYTES = 32 * 2**20  # of FFmpeg's own


def probing_bytes(num_bytes: int, max_frame_pixels: int) -> int:
    """Most bytes that it takes to count the frames of a file and decode the first, whatever its
    header says."""
    return MIN_BYTES + 2 * num_bytes + PER_PIXEL_HELD * 4 * max_frame_pixels


def frames_bytes(facts: FilmFacts, count: int, num_bytes: int) -> int:
    """Most bytes that it takes to decode `count` frames of a film of `num_bytes`, these frames
    included."""
    pixels = facts.width * facts.height
    decoder = PER_PIXEL_HELD * HELD_FRAMES * pixels
    return MIN_BYTES + 2 * num_bytes + decoder + PER_PIXEL * pixels * count
