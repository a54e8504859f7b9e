"""The linears of a FLUX.1 checkpoint that adapters may change: diffusers' path -> place in ours.

Computed from the configs, so that an adapter is checked before any weight is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from predictors.compute.checkpoint.folder import read_json
from predictors.compute.low_rank import LinearSizes
from predictors.diffusion.adapters import PICTURE, PROMPT, STEP, AdapterPlace
from predictors.models.flux.config import FluxConfig
from predictors.models.flux.modules.transformer import Shape
from predictors.models.flux.tensors import (
    Shapes,
    clip_tensors,
    t5_tensors,
    transformer_tensors,
    with_defaults,
)
from predictors.models.flux.weights import conditioning_names, transformer_names

WEIGHT = ".weight"
CONTEXT = "context"
"""The conditioning's linear that runs once per prompt; the others run once per picture."""
EMBEDDINGS = ("embedding", "relative_attention_bias", "shared")
"""Parts of names whose weights are matrices, but of no linear."""


def adapter_places(config: FluxConfig) -> dict[str, AdapterPlace]:
    """By the paths of `AdapterWeights.changes`."""
    places = dict(_transformer_places(config.shape))
    clip, t5 = (
        with_defaults(part, read_json(config.folders[part], "config.json", f"{part}/config.json"))
        for part in ("text_encoder", "text_encoder_2")
    )
    places |= _library_places("text_encoder.text_model", "clip", clip_tensors(clip))
    places |= _library_places("text_encoder_2", "t5", t5_tensors(t5))
    return places


def step_linears(places: Mapping[str, AdapterPlace]) -> dict[str, LinearSizes]:
    """The linears that run in every step, by our names, with their parts in order."""
    parts: defaultdict[str, list[AdapterPlace]] = defaultdict(list)
    for place in places.values():
        if place.stage == STEP:
            parts[place.linear].append(place)
    found = {}
    for linear, own in parts.items():
        own.sort(key=lambda place: place.part)
        found[linear] = LinearSizes(own[0].in_features, tuple(p.out_features for p in own))
    return found


def _transformer_places(shape: Shape) -> Iterator[tuple[str, AdapterPlace]]:
    shapes = transformer_tensors(_config_of(shape))
    for ours, theirs in transformer_names(shape).items():
        yield from _stacked("transformer", STEP, ours, theirs, shapes)
    for ours, theirs in conditioning_names(shape).items():
        stage = PROMPT if ours.startswith(f"{CONTEXT}.") else PICTURE
        yield from _stacked("transformer", stage, f"conditioning.{ours}", theirs, shapes)


def _stacked(
    component: str, stage: str, ours: str, theirs: Iterable[str], shapes: Shapes
) -> Iterator[tuple[str, AdapterPlace]]:
    """The places of diffusers' linears whose weights are stacked to one of ours."""
    begin = 0
    for part, name in enumerate(theirs):
        if not name.endswith(WEIGHT) or len(shapes.get(name, ())) != 2:
            continue
        features, features_in = shapes[name]
        path = f"{component}.{name.removesuffix(WEIGHT)}"
        linear = ours.removesuffix(WEIGHT)
        yield path, AdapterPlace(stage, linear, part, begin, features_in, features)
        begin += features


def _library_places(component: str, module: str, shapes: Shapes) -> dict[str, AdapterPlace]:
    """The places of a text encoder, which is a library's module."""
    found: dict[str, AdapterPlace] = {}
    for name in shapes:
        if not any(part in name for part in EMBEDDINGS):
            found |= _stacked(component, PROMPT, f"{module}.{name}", (name,), shapes)
    return found


def _config_of(shape: Shape) -> dict[str, Any]:
    """`shape` by diffusers' names."""
    return {
        "attention_head_dim": shape.head_dim,
        "num_attention_heads": shape.num_heads,
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "num_layers": shape.num_double,
        "num_single_layers": shape.num_single,
        "joint_attention_dim": shape.text_dim,
        "pooled_projection_dim": shape.pooled_dim,
        "guidance_embeds": shape.has_guidance,
    }
