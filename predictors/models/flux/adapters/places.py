"""The layers of a FLUX.1 checkpoint that an adapter may change, by every name that trainers give
them, with sizes from the checkpoint's configs. Without torch.

Names are diffusers', those of FLUX's authors (Black Forest Labs), whose fused layers are several of
diffusers', and XLabs'; each with dots, or with underscores alone as kohya's trainers write them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from predictors.models.flux.single_file_names import Rows, Sizes, transformer_cuts
from predictors.models.flux.tensors import MLP_RATIO, clip_tensors, t5_tensors, transformer_tensors

TRANSFORMER, CLIP, T5 = "transformer", "text_encoder", "text_encoder_2"
PARTS = (TRANSFORMER, CLIP, T5)
"""Parts that adapters change, as diffusers calls them."""
XLABS = {
    "double_blocks.{}.processor.qkv_lora1": "double_blocks.{}.img_attn.qkv",
    "double_blocks.{}.processor.qkv_lora2": "double_blocks.{}.txt_attn.qkv",
    "double_blocks.{}.processor.proj_lora1": "double_blocks.{}.img_attn.proj",
    "double_blocks.{}.processor.proj_lora2": "double_blocks.{}.txt_attn.proj",
    "single_blocks.{}.processor.proj_lora": "single_blocks.{}.linear2",
}
"""XLabs' names, and the authors'. Its `qkv_lora` of a single block is the first rows of one."""
OLD_CLIP = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora"}
OLD_CLIP |= {"out_proj": "to_out_lora"}
"""The names of CLIP's attention in diffusers before PEFT."""
EMBEDDINGS = ("token_embedding", "position_embedding", "relative_attention_bias", "shared")
"""Parts of names whose weights are matrices, but of no linear."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One linear of diffusers' layout: these rows of a layer's output, joined; all without any."""

    path: str
    """With the part in front."""
    rows: Rows = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A layer that an adapter may change."""

    name: str
    """Its first name, with the part in front."""
    out_features: int
    in_features: int
    pieces: tuple[Piece, ...]


class Places:
    """Every layer of a checkpoint by its part and each of its names. Immutable."""

    def __init__(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """`configs` are those of `PARTS`, all defaults filled in."""
        self._dotted: dict[tuple[str, str], Place] = {}
        self._flat: dict[tuple[str, str], Place] = {}
        self._tensors: set[tuple[str, str]] = set()
        self._add_transformer(configs[TRANSFORMER])
        self._add_clip(configs[CLIP])
        self._add_t5(configs[T5])

    def find(self, part: str, path: str) -> Place | None:
        """The layer of a name with dots."""
        return self._dotted.get((part, path))

    def find_flat(self, part: str, path: str) -> Place | None:
        """The layer of a name whose dots are underscores."""
        return self._flat.get((part, path))

    def is_tensor(self, part: str, name: str) -> bool:
        """True for the name of a tensor that the checkpoint itself stores."""
        return (part, name) in self._tensors

    def _add(self, part: str, place: Place, *names: str) -> None:
        for name in names:
            self._dotted[part, name] = place
            self._flat[part, name.replace(".", "_")] = place

    def _add_transformer(self, config: Mapping[str, Any]) -> None:
        shapes = transformer_tensors(config)
        self._tensors |= {(TRANSFORMER, name) for name in shapes}
        own: dict[str, Place] = {}
        for name, shape in shapes.items():
            path = name.removesuffix(".weight")
            if _is_linear(name, shape):
                own[path] = _whole(TRANSFORMER, path, shape)
                self._add(TRANSFORMER, own[path], path)
        for path, place in authors_places(config, own).items():
            self._add(TRANSFORMER, place, path)
            self._tensors.add((TRANSFORMER, f"{path}.weight"))
            self._tensors.add((TRANSFORMER, f"{path}.bias"))
        for pattern, theirs in XLABS.items():
            for i in range(config["num_layers"] + config["num_single_layers"]):
                if known := self.find(TRANSFORMER, theirs.format(i)):
                    self._add(TRANSFORMER, known, pattern.format(i))
        for i in range(config["num_single_layers"]):
            path = f"single_blocks.{i}.processor.qkv_lora"
            parts = [own[f"single_transformer_blocks.{i}.attn.to_{x}"] for x in "qkv"]
            self._add(TRANSFORMER, _joined(path, parts), path)

    def _add_clip(self, config: Mapping[str, Any]) -> None:
        shapes = clip_tensors(config)
        for name, shape in shapes.items():
            path = name.removesuffix(".weight")
            self._tensors |= {(CLIP, name), (CLIP, f"text_model.{name}")}
            if not _is_linear(name, shape):
                continue
            whole = f"text_model.{path}"
            names = [whole, path]
            before, _, last = whole.rpartition(".")
            if last in OLD_CLIP:
                names.append(f"{before}.{OLD_CLIP[last]}")
            self._add(CLIP, _whole(CLIP, whole, shape), *names)

    def _add_t5(self, config: Mapping[str, Any]) -> None:
        for name, shape in t5_tensors(config).items():
            self._tensors.add((T5, name))
            if _is_linear(name, shape):
                path = name.removesuffix(".weight")
                self._add(T5, _whole(T5, path, shape), path)


def authors_places(config: Mapping[str, Any], own: Mapping[str, Place]) -> dict[str, Place]:
    """The transformer's layers by their authors' names; `own` are those by diffusers' names."""
    pieces: dict[str, list[Piece]] = {}
    for name, cut in transformer_cuts(_sizes(config)).items():
        path = name.removesuffix(".weight")
        if path in own and path != name:
            source = cut.source.removesuffix(".weight")
            pieces.setdefault(source, []).append(Piece(own[path].name, cut.rows))
    found = {}
    for path, parts in pieces.items():
        first = own[parts[0].path.removeprefix(f"{TRANSFORMER}.")]
        out_features = sum(
            own[piece.path.removeprefix(f"{TRANSFORMER}.")].out_features for piece in parts
        )
        found[path] = Place(f"{TRANSFORMER}.{path}", out_features, first.in_features, tuple(parts))
    return found


def _is_linear(name: str, shape: Sequence[int]) -> bool:
    is_matrix = name.endswith(".weight") and len(shape) == 2
    return is_matrix and not any(each in name for each in EMBEDDINGS)


def _sizes(config: Mapping[str, Any]) -> Sizes:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return Sizes(
        num_double=config["num_layers"],
        num_single=config["num_single_layers"],
        width=width,
        mlp=MLP_RATIO * width,
        head_dim=config["attention_head_dim"],
        in_channels=config["in_channels"],
        out_channels=config["out_channels"] or config["in_channels"],
        text_dim=config["joint_attention_dim"],
        pooled_dim=config["pooled_projection_dim"],
        has_guidance=config["guidance_embeds"],
    )


def _whole(part: str, path: str, shape: Sequence[int]) -> Place:
    out_features, in_features = shape
    return Place(f"{part}.{path}", out_features, in_features, (Piece(f"{part}.{path}"),))


def _joined(path: str, parts: Sequence[Place]) -> Place:
    """One layer whose output is that of all `parts`, one behind the other."""
    pieces, at = [], 0
    for part in parts:
        pieces.append(Piece(part.name, ((at, at + part.out_features),)))
        at += part.out_features
    return Place(f"{TRANSFORMER}.{path}", at, parts[0].in_features, tuple(pieces))
