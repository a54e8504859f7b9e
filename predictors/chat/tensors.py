"""The tensors that a chat checkpoint stores for its decoder, by name and shape, computed from its
config without torch or transformers, and the check of all stored tensors.

Names are those of the hub; `hub_name` turns other releases' into them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from predictors.compute.checkpoint.accounting import ADAPTED, ExpectedTensor, check_tensors
from predictors.compute.checkpoint.headers import Header
from predictors.errors import EngineFailed

WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
"""Prefixes of all names of a checkpoint that was saved through DistributedDataParallel,
`torch.compile` or PEFT."""
RENAMED = (  # what transformers 5 and its earlier releases call the same things
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.visual.", "visual."),
    ("model.model.", "model."),
    ("model.lm_head.", "lm_head."),
)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UNUSED = r"(^|\.)rotary_(pos_)?emb\.inv_freq$"
"""Stored names that are of no use here: frequencies are computed from the config."""
LANGUAGE, VISION = "the language model", "the vision tower"  # as messages call the two
FRAMES = "visual.patch_embed.proj.weight"
"""Stored as a convolution over two frames: (hidden, channels, 2, patch, patch)."""
SECOND_FRAME = "visual.patch_embed.second_frame"
"""No stored name: the place of the part of `FRAMES` that is for the second frame, of films."""
POSITIONS = "visual.pos_embed.weight"

Shapes = dict[str, tuple[int, ...]]
"""Hub's name -> shape."""


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """Sizes of a decoder as its config gives them."""

    vocab: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    max_positions: int
    qkv_bias: bool = True
    qk_norm: bool = False

    @classmethod
    def of(
        cls, raw: Mapping[str, Any], text: Mapping[str, Any], *, head_dim: int, **own: bool
    ) -> DecoderSizes:
        """The sizes in a checked config with all defaults. `text` is the language model's part of
        `raw`; `own` are the model's fields."""
        return cls(
            vocab=text["vocab_size"],
            hidden=text["hidden_size"],
            mlp=text["intermediate_size"],
            layers=text["num_hidden_layers"],
            heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"],
            head_dim=head_dim,
            tied=bool(raw.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
            max_positions=text["max_position_embeddings"],
            **own,
        )

    @property
    def kv_values(self) -> int:
        """Numbers that the KV cache keeps per token."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def hub_name(name: str) -> str:
    if ADAPTED.search(name):  # refused by the name that is stored
        return name
    while wrapper := next((each for each in WRAPPERS if name.startswith(each)), ""):
        name = name.removeprefix(wrapper)
    for longer, shorter in RENAMED:
        if name.startswith(longer):
            return shorter + name.removeprefix(longer)
    return name


def decoder_tensors(sizes: DecoderSizes) -> Shapes:
    """All of the language model; without the head if it is tied."""
    hidden, mlp = sizes.hidden, sizes.mlp
    wide, narrow = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    found: Shapes = {EMBEDDING: (sizes.vocab, hidden), "model.norm.weight": (hidden,)}
    if not sizes.tied:
        found[HEAD] = (sizes.vocab, hidden)
    for i in range(sizes.layers):
        layer = f"model.layers.{i}"
        attention = f"{layer}.self_attn"
        found[f"{layer}.input_layernorm.weight"] = (hidden,)
        found[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        for part, rows in (("q", wide), ("k", narrow), ("v", narrow)):
            found[f"{attention}.{part}_proj.weight"] = (rows, hidden)
            if sizes.qkv_bias:
                found[f"{attention}.{part}_proj.bias"] = (rows,)
            if sizes.qk_norm and part != "v":
                found[f"{attention}.{part}_norm.weight"] = (sizes.head_dim,)
        found[f"{attention}.o_proj.weight"] = (hidden, wide)
        for part in ("gate", "up"):
            found[f"{layer}.mlp.{part}_proj.weight"] = (mlp, hidden)
        found[f"{layer}.mlp.down_proj.weight"] = (hidden, mlp)
    return found


def block_linear_shapes(sizes: DecoderSizes) -> list[tuple[int, ...]]:
    """The weights that `qwen_vl.precision` fp8 holds in eight bits."""
    return [s for name, s in decoder_tensors(sizes).items() if name.endswith("_proj.weight")]


def adaptable_linears(tensors: Shapes) -> Shapes:
    """The linears among a checkpoint's tensors that an adapter may change: name without `.weight`
    -> stored shape. The patches' convolution is one of them; the embeddings and the head are
    not."""
    fixed = (EMBEDDING, HEAD, POSITIONS)
    return {
        name.removesuffix(".weight"): shape
        for name, shape in tensors.items()
        if name not in fixed and name.endswith(".weight") and (len(shape) == 2 or name == FRAMES)
    }


def linear_sides(stored: tuple[int, ...]) -> tuple[int, int]:
    """Outputs and inputs of a stored linear as it runs: the two equal frames of the patches'
    convolution are folded into one."""
    if len(stored) == 2:
        return stored[0], stored[1]
    rows, channels, _, height, width = stored
    return rows, channels * height * width


def component_of(name: str) -> str:
    """The part that a stored tensor belongs to."""
    return VISION if hub_name(name).startswith("visual.") else LANGUAGE


def check_weights(
    stored: Mapping[str, Header], expected: Mapping[str, tuple[int, ...] | None]
) -> None:
    """Raise `EngineFailed` unless every stored tensor has a place, and every place a tensor.

    Both by the hub's names. A shape of None is checked elsewhere. A head beside a tied embedding is
    allowed.
    """
    for component in (LANGUAGE, VISION):
        mine = {n: h for n, h in stored.items() if component_of(n) == component}
        wanted = {n: ExpectedTensor(expected[n]) for n in sorted(expected) if n in mine}
        if HEAD in mine:
            wanted.setdefault(HEAD, ExpectedTensor(expected.get(EMBEDDING)))
        check_tensors(component, mine, wanted, UNUSED)
    if missing := expected.keys() - stored.keys():
        raise EngineFailed(f"the checkpoint lacks {len(missing)} weights, such as {min(missing)}")


def by_hub_names(stored: Mapping[str, Any]) -> dict[str, Any]:
    """`stored` by the hub's names; raises `EngineFailed` for a weight that is there twice."""
    found: dict[str, str] = {}
    for name in stored:
        other = found.setdefault(hub_name(name), name)
        if other != name:
            raise EngineFailed(f"the checkpoint holds one weight twice: {other} and {name}")
    return {name: stored[theirs] for name, theirs in found.items()}
