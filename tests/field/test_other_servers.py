"""Every field that vLLM, SGLang and vLLM-Omni take has a row here: at the value that their clients
send by default it is taken, and at any other it is at least known by its name.

Names and defaults are those of `vllm/entrypoints/openai/{chat_completion,completion}/protocol.py`
at 002032ee, `sglang/srt/entrypoints/openai/protocol.py` at 004c82e0,
`sglang/multimodal_gen/.../protocol.py` at 020befb6 and `vllm_omni/.../protocol/images.py` at
00a3619b.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.openai.chat_body import read_chat_body
from predictors.protocol.openai.completions_body import read_completions_body
from predictors.protocol.openai.images_body import read_images_body

SAMPLED: Mapping[str, Any] = {
    "frequency_penalty": None, "logit_bias": None, "n": 1, "presence_penalty": None, "seed": None,
    "stop": [], "stream": False, "stream_options": None, "temperature": None, "top_p": None,
    "user": None,
}  # fmt: skip
VLLM: Mapping[str, Any] = {
    **SAMPLED, "use_beam_search": False, "top_k": None, "min_p": None, "repetition_penalty": None,
    "watermarking": None, "length_penalty": 1.0, "stop_token_ids": [],
    "include_stop_str_in_output": False, "ignore_eos": False, "min_tokens": 0,
    "skip_special_tokens": True, "spaces_between_special_tokens": True,
    "truncate_prompt_tokens": None, "truncation_side": None, "allowed_token_ids": None,
    "prompt_logprobs": None, "logprob_token_ids": None, "bad_words": [], "echo": False,
    "response_format": None, "structured_outputs": None, "priority": 0, "request_id": "a",
    "session_id": None, "return_tokens_as_token_ids": None, "return_token_ids": None,
    "routed_experts_prompt_start": 0, "return_token_offsets": False, "return_mm_kwargs": True,
    "cache_salt": None, "kv_transfer_params": None, "ec_transfer_params": None, "vllm_xargs": None,
    "repetition_detection": None, "thinking_token_budget": None, "stream_interval": None,
}  # fmt: skip
VLLM_CHAT: Mapping[str, Any] = {
    **VLLM, "logprobs": False, "top_logprobs": 0, "max_tokens": None,
    "max_completion_tokens": None, "tools": None, "tool_choice": "none", "reasoning_effort": None,
    "include_reasoning": True, "parallel_tool_calls": True, "add_generation_prompt": True,
    "continue_final_message": False, "add_special_tokens": False, "documents": None,
    "chat_template": None, "chat_template_kwargs": None, "media_io_kwargs": None,
    "mm_processor_kwargs": None, "return_prompt_text": None,
}  # fmt: skip
VLLM_COMPLETION: Mapping[str, Any] = {
    **VLLM, "logprobs": None, "max_tokens": 16, "suffix": None, "add_special_tokens": True,
}  # fmt: skip
SGLANG: Mapping[str, Any] = {
    **SAMPLED, "frequency_penalty": 0.0, "presence_penalty": 0.0, "stop": None,
    "return_hidden_states": False, "return_routed_experts": False, "routed_experts_start_len": 0,
    "return_cached_tokens_details": False, "return_token_ids": False, "min_tokens": 0,
    "regex": None, "ebnf": None, "stop_token_ids": None, "stop_regex": None, "no_stop_trim": False,
    "ignore_eos": False, "skip_special_tokens": True, "lora_path": None, "session_id": None,
    "session_params": None, "response_format": None, "custom_params": None,
    "custom_logit_processor": None, "images_config": None, "bootstrap_host": None,
    "bootstrap_port": None, "bootstrap_room": None, "routed_dp_rank": None,
    "disagg_prefill_dp_rank": None, "data_parallel_rank": None, "rid": None, "extra_key": None,
    "cache_salt": None, "ngram_corpus_id": None, "priority": None,
}  # fmt: skip
SGLANG_CHAT: Mapping[str, Any] = {
    **SGLANG, "logprobs": False, "top_logprobs": None, "max_tokens": None, "top_k": None,
    "max_completion_tokens": None, "tools": None, "tool_choice": "auto", "min_p": None,
    "parallel_tool_calls": True, "return_prompt_token_ids": False, "return_meta_info": False,
    "reasoning_effort": None, "task": None, "repetition_penalty": None,
    "continue_final_message": False, "separate_reasoning": True, "stream_reasoning": True,
    "chat_template_kwargs": None, "max_dynamic_patch": None, "min_dynamic_patch": None,
    "use_audio_in_video": False, "input_ids": None,
}  # fmt: skip
SGLANG_COMPLETION: Mapping[str, Any] = {
    **SGLANG, "best_of": None, "echo": False, "logprobs": None, "max_tokens": 16, "suffix": None,
    "top_k": -1, "min_p": 0.0, "json_schema": None, "repetition_penalty": 1.0,
    "custom_labels": None,
}  # fmt: skip
SGLANG_PICTURES: Mapping[str, Any] = {
    "n": 1, "quality": "auto", "style": "vivid", "background": "auto", "output_format": None,
    "user": None, "num_inference_steps": None, "guidance_scale": None, "true_cfg_scale": None,
    "generator_device": "cuda", "negative_prompt": None, "output_quality": "default",
    "output_compression": None, "enable_teacache": False, "rollout": False,
    "rollout_sde_type": "sde", "diffusers_kwargs": None,
}  # fmt: skip
OMNI_PICTURES: Mapping[str, Any] = {
    "bot_task": None, "n": 1, "size": None, "response_format": "b64_json", "user": None,
    "layers": None, "negative_prompt": None, "system_prompt": None, "use_system_prompt": None,
    "num_inference_steps": None, "guidance_scale": None, "true_cfg_scale": None,
    "flow_shift": None, "extra_params": None, "infer_align_image_size": None, "seed": None,
    "generator_device": None, "lora": None, "vae_use_slicing": False, "vae_use_tiling": False,
    "output_format": None,
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Fields that a server's clients send by default, and our reader of that route."""

    read: Callable[[object], Any]
    body: Mapping[str, Any]
    defaults: Mapping[str, Any]


CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
TEXT = {"model": "m", "prompt": "hello", "max_tokens": 16}
DRAW = {"model": "m", "prompt": "a red circle"}
SERVERS = {
    "vLLM, chat": Asked(read_chat_body, CHAT, VLLM_CHAT),
    "vLLM, completion": Asked(read_completions_body, TEXT, VLLM_COMPLETION),
    "SGLang, chat": Asked(read_chat_body, CHAT, SGLANG_CHAT),
    "SGLang, completion": Asked(read_completions_body, TEXT, SGLANG_COMPLETION),
    "SGLang, pictures": Asked(read_images_body, DRAW, SGLANG_PICTURES),
    "vLLM-Omni, pictures": Asked(read_images_body, DRAW, OMNI_PICTURES),
}
WRITTEN = {"tool_choice", "frequency_penalty", "presence_penalty", "repetition_penalty"} | {
    "top_k", "min_p", "stop", "stop_token_ids", "min_tokens", "add_generation_prompt",
}  # fmt: skip
"""Served fields whose default, written out, is a value of the body; the model reads it as none."""
OTHERS: tuple[Any, ...] = (3, "x", ["x"], {"x": 1}, True)


@pytest.mark.parametrize("server", SERVERS)
def test_a_body_with_every_default_of_another_server_is_read(server: str) -> None:
    asked = SERVERS[server]
    found = asked.read({**asked.body, **asked.defaults})
    rest = {name: value for name, value in asked.defaults.items() if name not in WRITTEN}
    assert asked.read({**asked.body, **rest}) == asked.read(asked.body)
    assert type(found) is type(asked.read(asked.body))


@pytest.mark.parametrize("server", SERVERS)
def test_no_field_of_another_server_is_unknown_at_any_value(server: str) -> None:
    asked = SERVERS[server]
    for name in asked.defaults:
        for value in OTHERS:
            said = refusal_of(asked, name, value)
            assert said is None or not said.startswith(f"unknown field {name!r}")


def refusal_of(asked: Asked, name: str, value: Any) -> str | None:
    try:
        asked.read({**asked.body, name: value})
    except InvalidRequest as refused:
        return refused.message
    return None


def test_a_server_with_a_field_that_has_no_row_is_found() -> None:
    asked = replace(SERVERS["vLLM, chat"], defaults={"a_newer_field": None})
    with pytest.raises(InvalidRequest, match="unknown field 'a_newer_field'"):
        asked.read({**asked.body, **asked.defaults})
