"""Classes of checkpoints that are known and not served, as `model_index.json` and `config.json`
name them: the reason, and the checkpoint to take instead.
"""

from __future__ import annotations

from collections.abc import Mapping

_CONTROL = (
    "control pictures are not offered: take FLUX.1-dev, or FLUX.1-Kontext, which edits a picture"
)
_NO_HEAD = "it has no head that writes text: save the model with its language model's head"
_OTHER_PICTURES = "it is another architecture than FLUX.1"
KNOWN: Mapping[str, str] = {
    "FluxControl": _CONTROL,
    "FluxPriorRedux": "Redux makes embeddings of a picture, which are not offered: take "
    "FLUX.1-Kontext, which edits a picture",
    "ReduxImageEncoder": "Redux makes embeddings of a picture, which are not offered",
    "Flux2": "FLUX.2 is another architecture than FLUX.1",
    "QwenImage": f"{_OTHER_PICTURES}; Qwen-VL reads pictures and draws none",
    "Chroma": _OTHER_PICTURES,
    "ZImage": _OTHER_PICTURES,
    "HiDream": _OTHER_PICTURES,
    "StableDiffusion": _OTHER_PICTURES,
    "Qwen3VLMoe": "mixtures of experts are not offered: take a dense Qwen3-VL (2B, 4B, 8B, 32B)",
    "Qwen2VLFor": "Qwen2-VL is another architecture: take a Qwen2.5-VL of its size",
    "Qwen2_5Omni": "models that hear and speak are not offered: take a Qwen2.5-VL",
    "Qwen3Omni": "models that hear and speak are not offered: take a Qwen3-VL",
    "Qwen2ForCausalLM": "a model of text alone is not offered: take a Qwen2.5-VL",
    "Qwen3ForCausalLM": "a model of text alone is not offered: take a Qwen3-VL",
    **dict.fromkeys(("Qwen2_5_VLModel", "Qwen2_5_VLForSequence"), _NO_HEAD),
    **dict.fromkeys(("Qwen3VLModel", "Qwen3VLForSequence", "Qwen3VLForToken"), _NO_HEAD),
}
"""By the beginning of a class's name."""


def instead_of(architecture: str) -> str:
    """Why a class is not served, and what to take; empty for one that is not known."""
    return next((why for name, why in KNOWN.items() if architecture.startswith(name)), "")
