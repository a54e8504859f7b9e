"""Flags of vLLM's, SGLang's and KServe's Hugging Face server, and what says the same here: people
bring them in `args` of an InferenceService.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_FOLDER = "the folder is given as --model NAME=PATH"
_ONE_CARD = "one GPU holds a model: take more replicas"
_CONTEXT = "set PREDICTORS_QWEN_VL_MAX_CONTEXT"
_SHARE = "set PREDICTORS_QWEN_VL_MEMORY_FRACTION"
_SLOTS = "set PREDICTORS_QWEN_VL_SLOTS"
_CHUNK = "set PREDICTORS_QWEN_VL_PREFILL_CHUNK"
_CACHE = "set PREDICTORS_QWEN_VL_PREFIX_CACHE"
_PIXELS = "set PREDICTORS_QWEN_VL_MIN_PIXELS and PREDICTORS_QWEN_VL_MAX_PIXELS"
_TOOLS = "tools are on where the checkpoint's chat template has them: leave it out"
_FIXED = "the engine does that by itself: leave it out"
_CONFIG = "write it into the folder's config.json or generation_config.json"
_FETCHED = "nothing is fetched: give a folder"
_CERTIFICATE = "set PREDICTORS_TLS_CERT_FILE and PREDICTORS_TLS_KEY_FILE"
INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(("model-name", "model-id", "model-dir", "model-path", "tokenizer"), _FOLDER),
    **dict.fromkeys(("max-model-len", "max-length", "context-length"), _CONTEXT),
    "dtype": "set PREDICTORS_COMPUTE_DTYPE",
    **dict.fromkeys(("gpu-memory-utilization", "mem-fraction-static"), _SHARE),
    **dict.fromkeys(("max-num-seqs", "max-running-requests"), _SLOTS),
    **dict.fromkeys(("max-num-batched-tokens", "chunked-prefill-size"), _CHUNK),
    **dict.fromkeys(("tensor-parallel-size", "tp-size", "tp", "pipeline-parallel-size"), _ONE_CARD),
    **dict.fromkeys(("data-parallel-size", "dp-size", "dp"), _ONE_CARD),
    "quantization": "it is read from the folder; fp8 of any: set PREDICTORS_QWEN_VL_PRECISION=fp8",
    "trust-remote-code": "no code of a checkpoint is run: leave it out",
    **dict.fromkeys(("lora-modules", "lora-paths"), "give --lora NAME=PATH for each"),
    "enable-lora": "give --lora NAME=PATH for each adapter",
    **dict.fromkeys(("max-loras", "max-loras-per-batch"), "set PREDICTORS_QWEN_VL_LORA_MAX_ACTIVE"),
    "max-lora-rank": "set PREDICTORS_QWEN_VL_LORA_MAX_RANK",
    **dict.fromkeys(("enable-prefix-caching", "no-enable-prefix-caching"), _CACHE),
    "disable-radix-cache": _CACHE,
    "limit-mm-per-prompt": "set PREDICTORS_IMAGES_MAX_IMAGES",
    "mm-processor-kwargs": _PIXELS,
    **dict.fromkeys(("enable-auto-tool-choice", "tool-call-parser"), _TOOLS),
    **dict.fromkeys(("enable-chunked-prefill", "enforce-eager", "disable-cuda-graph"), _FIXED),
    **dict.fromkeys(("disable-log-requests", "disable-log-stats", "enable-multimodal"), _FIXED),
    **dict.fromkeys(("generation-config", "hf-overrides", "rope-scaling"), _CONFIG),
    "chat-template": "the folder's own is used: write it to chat_template.jinja in the folder",
    **dict.fromkeys(("revision", "download-dir", "load-format", "hf-token"), _FETCHED),
    "api-key": "set PREDICTORS_ACCESS_KEYS_FILE (`predictors keys` makes keys)",
    "allowed-origins": "set PREDICTORS_SERVER_ALLOWED_ORIGINS",
    **dict.fromkeys(("ssl-keyfile", "ssl-certfile"), _CERTIFICATE),
    **dict.fromkeys(("uvicorn-log-level", "log-level"), "set PREDICTORS_SERVER_LOG_LEVEL"),
    "http-port": "it is --port here",
    "workers": "set PREDICTORS_SERVER_WORKERS",
}
"""By the flag's name, with - for _."""


def advice_of(arguments: Sequence[str]) -> str:
    """The ends of a sentence about flags that are not known: what says the same here."""
    flags = [each.partition("=")[0] for each in arguments if each.startswith("--")]
    known = {flag: INSTEAD.get(flag.strip("-").replace("_", "-")) for flag in flags}
    return "".join(f"; {flag}: {instead}" for flag, instead in known.items() if instead)
