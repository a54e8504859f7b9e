"""Describes a chat model's folder, or refuses it, without torch or transformers.

Everything that the config, the tokenizer's files and the headers of weights can show is checked
here, with the functions that loading uses. Values are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from predictors.chat.adapters.peft import read_peft_adapter
from predictors.chat.folder import check_generation
from predictors.chat.memory import ChatWeights, chat_options
from predictors.chat.stored_template import check_stored_template
from predictors.chat.template_checks import THINKING, opens_thinking
from predictors.chat.tensors import (
    FRAMES,
    HEAD,
    LANGUAGE,
    VISION,
    DecoderSizes,
    Shapes,
    adaptable_linears,
    by_hub_names,
    check_weights,
    component_of,
    decoder_tensors,
    hub_name,
    linear_sides,
)
from predictors.chat.token_files import check_tokens, end_tokens, read_tokens
from predictors.compute.checkpoint.folder import reading
from predictors.compute.checkpoint.headers import read_headers
from predictors.compute.checkpoint.quantised.config import read_quantisation
from predictors.compute.checkpoint.quantised.recognise import recognise
from predictors.compute.checkpoint.summary import (
    AdapterSummary,
    CardFacts,
    FolderSummary,
    card_dtype,
    num_values,
    summarise_part,
)
from predictors.settings import MOST_RANK, Settings


@dataclass(frozen=True, slots=True)
class ChatFolders:
    """Describes the folders of one model, by the functions of its `folder.py`."""

    architecture: str
    """The class in `config.json`."""
    read_folder: Callable[[Path], tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]
    """The raw config, and its text and vision values with all defaults."""
    decoder_sizes: Callable[[Mapping[str, Any], Mapping[str, Any]], DecoderSizes]
    """Sizes of the decoder, from the raw config and its text values."""
    vision_tensors: Callable[[Mapping[str, Any]], Shapes]
    """Shapes of the vision tower's tensors, from its values."""
    linears: Callable[[Mapping[str, Any]], Shapes]
    """Shapes of the linears that adapters may change, from the raw config."""

    def summarise(self, folder: Path, settings: Settings, card: CardFacts) -> FolderSummary:
        """The content of a folder, and its memory on `card`. Raises `ServingError` with the start's
        own message for a folder that is not served."""
        raw, text, vision = self.read_folder(folder)
        with reading("config.json"):
            sizes, tensors = self.decoder_sizes(raw, text), self.vision_tensors(vision)
        return _summarise(folder, self.architecture, raw, sizes, tensors, settings, card)

    def describe_adapter(
        self,
        name: str,
        path: Path,
        checkpoint: Path,
        settings: Settings,
        components: Mapping[str, Path] = MappingProxyType({}),
    ) -> AdapterSummary:
        """The adapter at `path` as a server of `checkpoint`, which has no `components`, would load
        it. Reads the whole file. Raises `ServingError` with the start's own message for one that is
        not served."""
        assert not components
        raw, *_ = self.read_folder(checkpoint)
        most = settings.qwen_vl.lora_max_rank or MOST_RANK
        return read_peft_adapter(path, self.linears(raw), most).summary(name)


def _summarise(
    checkpoint: Path,
    architecture: str,
    raw: Mapping[str, Any],
    sizes: DecoderSizes,
    vision: Shapes,
    settings: Settings,
    card: CardFacts,
) -> FolderSummary:
    """The content of a folder whose config says `raw`, `sizes` and these tensors of the vision
    tower, and its memory on `card`. Raises `EngineFailed` with the start's own message."""
    tokens = read_tokens(checkpoint)
    check_tokens(raw, tokens, sizes.vocab)
    check_generation(checkpoint)
    end_tokens(checkpoint, raw, tokens)
    prompt = check_stored_template(checkpoint, tokens)
    stored = read_headers(checkpoint, settings.compute.weights_variant)
    named = read_quantisation(raw, checkpoint, LANGUAGE)
    quantised = recognise(stored, named, component_of)
    decoder = decoder_tensors(sizes)
    check_weights(by_hub_names(quantised.headers), decoder | vision)
    parts = []
    for component, shapes in ((LANGUAGE, decoder), (VISION, vision)):
        mine = {name: t for name, t in stored.items() if component_of(name) == component}
        name = component.removeprefix("the ")
        method = quantised.method_of(n for n in quantised.headers if component_of(n) == component)
        parts.append(summarise_part(name, architecture, mine, _count(shapes), method))
    width, *_, patch = vision[FRAMES]
    linears = adaptable_linears(decoder | vision).values()
    adaptable = sum(sum(linear_sides(shape)) for shape in linears)
    notes = {
        BOTH_HEADS: sizes.tied and HEAD in map(hub_name, stored),
        THINKING: opens_thinking(prompt),
    }
    weights = ChatWeights(_count(decoder), _count(vision), sizes, width, patch, adaptable)
    return FolderSummary(
        architecture=architecture,
        task="qwen_vl",
        parts=tuple(parts),
        options=chat_options(weights, settings.qwen_vl, card_dtype(settings), card),
        notes=tuple(note for note, is_true in notes.items() if is_true),
        memory_fraction=settings.qwen_vl.memory_fraction,
    )


BOTH_HEADS = (
    "tie_word_embeddings is set and lm_head.weight is stored: if it differs from the embedding, it "
    "is used"
)


def _count(shapes: Shapes) -> int:
    return sum(map(num_values, shapes.values()))
