"""The settings of a checkpoint's picture and video processors that resize and normalise as usual.
All others are left to transformers' own classes, whose import takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from predictors.chat.vision.pixels import BICUBIC
from predictors.compute.checkpoint.folder import is_real

EDGES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
"""Older names of the two areas in `size`."""
PROCESSOR_DEFAULTS: Mapping[str, Any] = {
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
    "resample": BICUBIC,
    "rescale_factor": 1 / 255,
}
"""Defaults of the image processor classes of all these models."""
FILM_DEFAULTS: Mapping[str, Any] = {
    **PROCESSOR_DEFAULTS,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_frames": 4,
    "max_frames": 768,
    "num_frames": None,
    "fps": None,
}


def usual_settings(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], *, renames_edges: bool = True
) -> SimpleNamespace | None:
    """The attributes of a processor of transformers with these `settings`, over the `defaults` of
    its class; None for a processor that does not resize and normalise as usual.

    `renames_edges`: the class knows the older names of areas.
    """
    found = {**defaults, **settings}
    size = found["size"]
    if any(found[name] is None for name, value in defaults.items() if value is not None):
        return None
    if not isinstance(size, Mapping) or set(size) != set(EDGES.values()):
        return None
    older = {edge: found[name] for name, edge in EDGES.items() if found.get(name) is not None}
    if older and not renames_edges:
        return None
    found["size"] = {**size, **older}
    usual = all(found[name] is True for name in ("do_resize", "do_rescale", "do_normalize"))
    levels = (*found["image_mean"], *found["image_std"], *found["size"].values())
    numbers = (*levels, found["rescale_factor"])
    if not usual or found["resample"] != BICUBIC or not all(map(is_real, numbers)):
        return None
    return SimpleNamespace(**found)
