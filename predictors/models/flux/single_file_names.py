"""Names and sizes of a FLUX.1 transformer and its autoencoder as their authors store them, and the
rows of which diffusers' tensors are made. Without torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from predictors.compute.checkpoint.headers import Header
from predictors.errors import EngineFailed

MASK_FEATURES = 256  # pixels of a patch of 16 x 16
Rows = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor of diffusers' layout: these rows of a stored one, joined; all without any.

    With `is_linear` a 1x1 convolution (rows, columns, 1, 1) becomes (rows, columns).
    """

    source: str
    rows: Rows = ()
    is_linear: bool = False

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        count = sum(stop - start for start, stop in self.rows) if self.rows else stored[0]
        return (count, *(stored[1:2] if self.is_linear else stored[1:])) if stored else ()


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a transformer, read from its tensors. `width` and `mlp` are features."""

    num_double: int
    num_single: int
    width: int
    mlp: int
    head_dim: int
    in_channels: int
    out_channels: int
    text_dim: int
    pooled_dim: int
    has_guidance: bool

    @classmethod
    def of(cls, tensors: Mapping[str, Header]) -> Sizes:
        """Raises `EngineFailed` naming a tensor that is missing or does not fit to the others."""

        def shape(name: str, dims: int) -> tuple[int, ...]:
            if name not in tensors or len(tensors[name].shape) != dims:
                raise EngineFailed(f"the transformer has no tensor {name} of {dims} dimensions")
            return tensors[name].shape

        found = cls(
            num_double=_blocks(tensors, "double_blocks"),
            num_single=_blocks(tensors, "single_blocks"),
            width=shape("img_in.weight", 2)[0],
            mlp=shape("double_blocks.0.img_mlp.0.weight", 2)[0],
            head_dim=shape("double_blocks.0.img_attn.norm.query_norm.scale", 1)[0],
            in_channels=shape("img_in.weight", 2)[1],
            out_channels=shape("final_layer.linear.weight", 2)[0],
            text_dim=shape("txt_in.weight", 2)[1],
            pooled_dim=shape("vector_in.in_layer.weight", 2)[1],
            has_guidance="guidance_in.in_layer.weight" in tensors,
        )
        if not found.head_dim or found.width % found.head_dim or found.mlp != 4 * found.width:
            raise EngineFailed(
                f"the transformer is {found.width} wide with heads of {found.head_dim} and an MLP "
                f"of {found.mlp}: the width must be a multiple of the first and a quarter of the "
                "second"
            )
        return found

    @property
    def is_even(self) -> bool:
        """True if the transformer reads as many features of a patch as it writes."""
        return self.in_channels == self.out_channels

    @property
    def is_fill(self) -> bool:
        """True for FLUX.1-Fill, which reads latents, those of a picture, and a mask's pixels."""
        return self.in_channels == 2 * self.out_channels + MASK_FEATURES

    def config(self, axes: tuple[int, ...]) -> dict[str, object]:
        """The config of diffusers' class; `axes` are the rotary features of each position axis."""
        return {
            "_class_name": "FluxTransformer2DModel",
            "attention_head_dim": self.head_dim,
            "axes_dims_rope": list(axes),
            "guidance_embeds": self.has_guidance,
            "in_channels": self.in_channels,
            "joint_attention_dim": self.text_dim,
            "num_attention_heads": self.width // self.head_dim,
            "num_layers": self.num_double,
            "num_single_layers": self.num_single,
            "out_channels": None if self.is_even else self.out_channels,
            "patch_size": 1,
            "pooled_projection_dim": self.pooled_dim,
        }


def _blocks(tensors: Mapping[str, Header], kind: str) -> int:
    """How many blocks there are; one that is missing between them is found by its tensors."""
    pattern = re.compile(rf"{kind}\.(\d{{1,4}})\.")
    return max((int(m[1]) + 1 for m in map(pattern.match, tensors) if m), default=0)


def transformer_cuts(sizes: Sizes) -> dict[str, Cut]:
    """By diffusers' names."""
    cuts: dict[str, Cut] = {}
    embedders = {"time_in": "timestep_embedder", "vector_in": "text_embedder"}
    if sizes.has_guidance:
        embedders["guidance_in"] = "guidance_embedder"
    for theirs, ours in embedders.items():
        cuts |= _linear(f"time_text_embed.{ours}.linear_1", f"{theirs}.in_layer")
        cuts |= _linear(f"time_text_embed.{ours}.linear_2", f"{theirs}.out_layer")
    cuts |= _linear("context_embedder", "txt_in") | _linear("x_embedder", "img_in")
    for i in range(sizes.num_double):
        cuts |= _double(f"transformer_blocks.{i}", f"double_blocks.{i}", sizes.width)
    for i in range(sizes.num_single):
        cuts |= _single(f"single_transformer_blocks.{i}", f"single_blocks.{i}", sizes)
    # stored as shift and scale, read by diffusers as scale and shift
    swapped = ((sizes.width, 2 * sizes.width), (0, sizes.width))
    cuts |= _linear("norm_out.linear", "final_layer.adaLN_modulation.1", swapped)
    return cuts | _linear("proj_out", "final_layer.linear")


def _double(ours: str, theirs: str, width: int) -> dict[str, Cut]:
    cuts: dict[str, Cut] = {}
    for stream, norm, qkv, query, out, ff in (
        ("img", "norm1", "to_{}", "norm_", "to_out.0", "ff"),
        ("txt", "norm1_context", "add_{}_proj", "norm_added_", "to_add_out", "ff_context"),
    ):
        cuts |= _linear(f"{ours}.{norm}.linear", f"{theirs}.{stream}_mod.lin")
        for at, x in enumerate("qkv"):
            rows = ((at * width, (at + 1) * width),)
            cuts |= _linear(f"{ours}.attn.{qkv.format(x)}", f"{theirs}.{stream}_attn.qkv", rows)
        cuts |= _norms(f"{ours}.attn.{query}", f"{theirs}.{stream}_attn.norm")
        cuts |= _linear(f"{ours}.attn.{out}", f"{theirs}.{stream}_attn.proj")
        cuts |= _linear(f"{ours}.{ff}.net.0.proj", f"{theirs}.{stream}_mlp.0")
        cuts |= _linear(f"{ours}.{ff}.net.2", f"{theirs}.{stream}_mlp.2")
    return cuts


def _single(ours: str, theirs: str, sizes: Sizes) -> dict[str, Cut]:
    width = sizes.width
    cuts = _linear(f"{ours}.norm.linear", f"{theirs}.modulation.lin")
    for at, x in enumerate("qkv"):
        rows = ((at * width, (at + 1) * width),)
        cuts |= _linear(f"{ours}.attn.to_{x}", f"{theirs}.linear1", rows)
    rest = ((3 * width, 3 * width + sizes.mlp),)
    cuts |= _linear(f"{ours}.proj_mlp", f"{theirs}.linear1", rest)
    cuts |= _linear(f"{ours}.proj_out", f"{theirs}.linear2")
    return cuts | _norms(f"{ours}.attn.norm_", f"{theirs}.norm")


def _linear(ours: str, theirs: str, rows: Rows = ()) -> dict[str, Cut]:
    return {f"{ours}.{leaf}": Cut(f"{theirs}.{leaf}", rows) for leaf in ("weight", "bias")}


def _norms(ours: str, theirs: str) -> dict[str, Cut]:
    return {
        f"{ours}q.weight": Cut(f"{theirs}.query_norm.scale"),
        f"{ours}k.weight": Cut(f"{theirs}.key_norm.scale"),
    }


ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
VAE_BLOCK = re.compile(
    r"(encoder|decoder)\.(down|up)\.(\d{1,3})\.(block|downsample|upsample)\.(.+)"
)
VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block|attn)_(1|2)\.(.+)")


def vae_cuts(tensors: Mapping[str, Header]) -> dict[str, Cut]:
    """By diffusers' names, of an autoencoder in its authors' names; other names stay."""
    levels = 1 + max((int(m[3]) for m in map(VAE_BLOCK.match, tensors) if m), default=0)
    return {_vae_name(name, levels): _vae_cut(name, tensors[name]) for name in tensors}


def _vae_cut(name: str, header: Header) -> Cut:
    middle = VAE_MIDDLE.fullmatch(name)
    is_attention = bool(middle) and name.rpartition(".")[0].endswith((".q", ".k", ".v", "proj_out"))
    return Cut(name, is_linear=is_attention and len(header.shape) == 4)


def _vae_name(name: str, levels: int) -> str:
    if match := VAE_MIDDLE.fullmatch(name):
        half, kind, number, rest = match.groups()
        leaf, _, last = rest.partition(".")
        if kind == "attn":
            return f"{half}.mid_block.attentions.0.{ATTENTION.get(leaf, leaf)}.{last}"
        return f"{half}.mid_block.resnets.{int(number) - 1}.{_resnet(rest)}"
    if match := VAE_BLOCK.fullmatch(name):
        half, way, level, kind, rest = match.groups()
        # decoders count their levels from the last one
        index = levels - 1 - int(level) if way == "up" else int(level)
        block = f"{half}.{way}_blocks.{index}"
        if kind == "block":
            number, _, rest = rest.partition(".")
            return f"{block}.resnets.{number}.{_resnet(rest)}"
        return f"{block}.{kind}rs.0.{rest}"
    return re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", name)


def _resnet(rest: str) -> str:
    return re.sub(r"^nin_shortcut\.", "conv_shortcut.", rest)
