"""Fields of widely used clients and servers that can't change the answer, by who sends them.

Each is dropped at the values that ask for what is done anyway, and refused at any other. A field
that could change the answer is not here: it is served under its own name or refused as unknown.
`docs/openai-fields.md` is written from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.openai.fields import (
    DROP,
    MAX_NAME,
    DescribedRule,
    described,
    dropped,
    only_values,
    wrong,
)
from predictors.protocol.openai.reasoning_fields import (
    IN_THE_TEXT,
    LIMITS_OF_REASONING,
    NOT_READ,
)

Tables = Mapping[str, Mapping[str, DescribedRule]]
"""Rules by field, by the heading of their client."""

_SAMPLER = "this sampler is not offered"
_NO_EFFECT = "it only matters to a sampler that is off"
NO_TOOLS = "this server has no tools of its own"
_TEMPLATE = "the checkpoint's chat template is used as it is"
_NO_SPACES = "tokens are bytes, with no spaces between them"
_BY_LOGPROBS = "use logprobs and top_logprobs"
_ONE_MODEL = "the model that is named answers"
_ROUTER = "it is for the router or library that sends it"
_IDENTITY = "it identifies the caller's chat"
_HEADER = "the header `x-request-id` names a request"
_TOKENIZE = "POST /tokenize answers with a prompt's tokens"
_RENDERING = "it is for routes that only render prompts"
_NO_EXPERTS = "no model here has experts"
_WORKERS = (
    "bootstrap_host", "bootstrap_port", "bootstrap_room", "routed_dp_rank", "data_parallel_rank",
    "disagg_prefill_dp_rank",
)  # fmt: skip
"""SGLang's names of the worker that a router means."""


@described(
    {
        "type": "object",
        "additionalProperties": {"type": ["boolean", "null"], "not": {"const": True}},
        "description": "Ignored where every value is false, else refused: no such feature.",
    }
)
def all_false(name: str, value: Any) -> object:
    """An object whose values are all false, null or empty."""
    if not isinstance(value, dict):
        raise wrong(name, "an object", value)
    for key, each in value.items():
        if each:
            path = f"{name}.{key[:MAX_NAME]}"
            raise InvalidRequest(
                f"{path!a} is not supported: there is no such feature; it may only be false",
                param=path,
            )
    return DROP


ROUTER_FIELDS: Mapping[str, DescribedRule] = {
    "drop_params": dropped(bool, why=_ROUTER),
    "additional_drop_params": dropped(list, why=_ROUTER),
    "num_retries": dropped(float, why=_ROUTER),
    "max_retries": dropped(float, why=_ROUTER),
    "caching": dropped(bool, why=_ROUTER),
    "tags": dropped(list, why=_ROUTER),
    "litellm_call_id": dropped(str, why=_ROUTER),
    "litellm_session_id": dropped(str, why=_ROUTER),
    "litellm_trace_id": dropped(str, why=_ROUTER),
    "litellm_metadata": dropped(dict, why=_ROUTER),
    "fallbacks": only_values([], why=_ONE_MODEL),
    "guardrails": only_values([], why="there are no guardrails"),
    "extra_body": only_values({}, why="its fields belong into the body itself"),
    "extra_headers": only_values({}, why="headers belong into the request's head"),
    "extra_query": only_values({}, why="no route takes a query"),
}
"""LiteLLM's; on every POST route."""

LLAMA = "llama.cpp and what is built on it"

CHAT_CLIENTS: Tables = {
    "Open WebUI": {
        "id": dropped(str, why=_IDENTITY),
        "chat_id": dropped(str, why=_IDENTITY),
        "session_id": dropped(str, why=_IDENTITY),
        "parent_id": dropped(str, why=_IDENTITY),
        "user_message": dropped(dict, why="it repeats the last message"),
        "background_tasks": dropped(dict, why="Open WebUI runs them itself"),
        "model_item": dropped(dict, why="it describes the model to Open WebUI"),
        "variables": dropped(dict, why="Open WebUI puts them into the messages itself"),
        "features": all_false,
        "filter_ids": only_values([], why="there are no filters"),
        "tool_ids": only_values([], why=NO_TOOLS),
        "tool_servers": only_values([], why=NO_TOOLS),
        "skill_ids": only_values([], why=NO_TOOLS),
        "files": only_values([], why="pictures belong into the messages"),
        "params": only_values({}, why="its fields belong into the body itself"),
        "terminal_id": dropped(str, why=_IDENTITY),
    },
    "LiteLLM": ROUTER_FIELDS,
    "OpenRouter": {
        "models": only_values([], why=_ONE_MODEL),
        "route": only_values("fallback", why=_ONE_MODEL),
        "provider": only_values({}, why=_ONE_MODEL),
        "transforms": only_values([], why="prompts are not shortened"),
        "plugins": only_values([], why=NO_TOOLS),
        "include_reasoning": LIMITS_OF_REASONING["include_reasoning"],
        "reasoning": LIMITS_OF_REASONING["reasoning"],
    },
    "vLLM": {
        "best_of": only_values(1, why="every choice is answered"),
        "use_beam_search": only_values(False, why="tokens are sampled"),
        "length_penalty": only_values(1, why="it is for beam search"),
        "early_stopping": only_values(False, why="it is for beam search"),
        "spaces_between_special_tokens": dropped(bool, why=_NO_SPACES),
        "truncate_prompt_tokens": only_values(why="prompts are not shortened"),
        "prompt_logprobs": only_values(why="only the answer's tokens have logprobs"),
        "allowed_token_ids": only_values([], why="use logit_bias"),
        "bad_words": only_values([], why="use logit_bias"),
        "echo": only_values(False, why="the prompt is not repeated"),
        "add_special_tokens": only_values(False, why=_TEMPLATE),
        "chat_template": only_values(why=_TEMPLATE),
        "documents": only_values([], why=_TEMPLATE),
        "guided_decoding_backend": dropped(str, why="there is one way to keep a format"),
        "guided_whitespace_pattern": only_values(why="spaces between values are bounded anyway"),
        "logits_processors": only_values([], why="no code of a caller is run"),
        "return_token_ids": only_values(False, why="use logprobs with return_tokens_as_token_ids"),
        "priority": only_values(
            0, why="the header `x-request-priority` orders a caller's own requests"
        ),
        "cache_salt": only_values(why="the prefix cache is shared by all callers"),
        "kv_transfer_params": only_values({}, why="pages are not sent elsewhere"),
        "vllm_xargs": only_values({}, why=_SAMPLER),
        "request_id": dropped(str, why=_HEADER),
        "truncation_side": dropped(str, why="prompts are not shortened"),
        "logprob_token_ids": only_values([], why="use top_logprobs"),
        "thinking_token_budget": LIMITS_OF_REASONING["thinking_token_budget"],
        "watermarking": only_values(False, why="tokens are drawn without a mark"),
        "repetition_detection": only_values({}, why="use repetition_penalty, or max_tokens"),
        "stream_interval": only_values(1, why="events come as tokens do"),
        "return_prompt_text": only_values(False, why=_TOKENIZE),
        "return_token_offsets": dropped(bool, why=_RENDERING),
        "return_mm_kwargs": dropped(bool, why=_RENDERING),
        "routed_experts_prompt_start": dropped(float, why=_NO_EXPERTS),
        "ec_transfer_params": only_values({}, why="features of pictures are not sent elsewhere"),
    },
    "DashScope, SiliconFlow, Z.ai and Anthropic": {
        "enable_thinking": LIMITS_OF_REASONING["enable_thinking"],
        "thinking": LIMITS_OF_REASONING["thinking"],
        "thinking_budget": LIMITS_OF_REASONING["thinking_budget"],
        "enable_search": only_values(False, why=NO_TOOLS),
    },
    "SGLang": {
        "min_new_tokens": only_values(0, why="use min_tokens"),
        "no_stop_trim": only_values(False, why="use include_stop_str_in_output"),
        "separate_reasoning": dropped(bool, why=IN_THE_TEXT),
        "stream_reasoning": dropped(bool, why=IN_THE_TEXT),
        "return_hidden_states": only_values(False, why="answers are text"),
        "rid": dropped(str, list, why=_HEADER),
        "max_new_tokens": only_values(why="use max_tokens"),
        "stop_regex": only_values("", [], why="use stop, or regex for the whole answer"),
        "lora_path": only_values(why="name an adapter in loras, or as MODEL:ADAPTER"),
        "session_params": only_values({}, why="send the whole conversation"),
        "custom_logit_processor": only_values("", why="no code of a caller is run"),
        "custom_params": only_values({}, why="no code of a caller is run"),
        "input_ids": only_values(why="send token ids as the prompt of /v1/completions"),
        "extra_key": only_values(why="the prefix cache is shared by all callers"),
        "custom_labels": only_values({}, why="series have the labels of docs/metrics.md"),
        "return_cached_tokens_details": only_values(False, why="usage has the cached tokens"),
        "return_prompt_token_ids": only_values(False, why=_TOKENIZE),
        "return_meta_info": only_values(False, why="usage has the counts of tokens"),
        "return_routed_experts": only_values(False, why=_NO_EXPERTS),
        "routed_experts_start_len": dropped(float, why=_NO_EXPERTS),
        "use_audio_in_video": only_values(False, why="films are read without their sound"),
        "min_dynamic_patch": only_values(why="use min_pixels"),
        "max_dynamic_patch": only_values(why="use max_pixels"),
        "images_config": only_values({}, why="use min_pixels and max_pixels"),
        "task": only_values(why="no model here has such tasks"),
        "ngram_corpus_id": only_values(why="there is no speculative decoding to be guided"),
        **dict.fromkeys(_WORKERS, only_values(why="this server alone answers")),
    },
    LLAMA: {
        "cache_prompt": dropped(bool, why="the operator sets the prefix cache"),
        "id_slot": only_values(-1, why="the engine picks the slot"),
        "n_keep": dropped(float, why="a prompt is never shortened"),
        "n_probs": only_values(0, why=_BY_LOGPROBS),
        "mirostat": only_values(0, why=_SAMPLER),
        "mirostat_tau": dropped(float, why=_NO_EFFECT),
        "mirostat_eta": dropped(float, why=_NO_EFFECT),
        "typical_p": only_values(1, why=_SAMPLER),
        "tfs_z": only_values(1, why=_SAMPLER),
        "top_a": only_values(0, why=_SAMPLER),
        "top_n_sigma": only_values(-1, why=_SAMPLER),
        "dynatemp_range": only_values(0, why=_SAMPLER),
        "dynatemp_exponent": dropped(float, why=_NO_EFFECT),
        "xtc_probability": only_values(0, why=_SAMPLER),
        "xtc_threshold": dropped(float, why=_NO_EFFECT),
        "dry_multiplier": only_values(0, why=_SAMPLER),
        "dry_base": dropped(float, why=_NO_EFFECT),
        "dry_allowed_length": dropped(float, why=_NO_EFFECT),
        "dry_penalty_last_n": dropped(float, why=_NO_EFFECT),
        "dry_sequence_breakers": dropped(list, why=_NO_EFFECT),
        "repeat_penalty": only_values(1, why="use repetition_penalty"),
        "repeat_last_n": dropped(float, why=_NO_EFFECT),
        "reasoning_format": dropped(str, why=IN_THE_TEXT),
        "timings_per_token": only_values(False, why="timings come at the end"),
        "return_progress": only_values(False, why="chunks are text"),
        "return_tokens": only_values(False, why="answers are text"),
        "n_predict": only_values(why="use max_tokens"),
        "samplers": only_values([], why="samplers have one order"),
        "n_discard": dropped(float, why="a prompt is never shortened"),
        "t_max_predict_ms": only_values(0, why="the header `x-request-timeout-ms` is a deadline"),
        "post_sampling_probs": only_values(False, why=_BY_LOGPROBS),
        "lora": only_values([], why="use loras"),
    },
    "Ollama": {
        "keep_alive": dropped(str, float, why="a served model stays loaded"),
        "options": only_values({}, why="its fields belong into the body itself"),
        "think": LIMITS_OF_REASONING["think"],
        "format": only_values("", why="use response_format"),
    },
}
"""Fields of `POST /v1/chat/completions` that other clients send, by client."""

SENT_BACK = "it came with the answer that is sent back"
_CACHE_MARK = "equal beginnings are found without it"

MESSAGE_CLIENTS: Tables = {
    "answers sent back": {
        "id": dropped(str, float, why=SENT_BACK),
        "type": only_values("message", why="messages are the only items"),
        "object": dropped(str, why=SENT_BACK),
        "status": dropped(str, why=SENT_BACK),
        "model": dropped(str, why=SENT_BACK),
        "created": dropped(float, why=SENT_BACK),
        "created_at": dropped(str, float, why=SENT_BACK),
        "createdAt": dropped(str, float, why=SENT_BACK),
        "timestamp": dropped(str, float, why=SENT_BACK),
        "index": dropped(float, why=SENT_BACK),
        "finish_reason": dropped(str, why=SENT_BACK),
        "stop_reason": dropped(str, float, why=SENT_BACK),
        "usage": dropped(dict, why=SENT_BACK),
        "logprobs": dropped(dict, why=SENT_BACK),
        "parsed": dropped(dict, list, str, float, bool, why=SENT_BACK),
    },
    "LiteLLM, OpenRouter": {
        "cache_control": dropped(dict, why=_CACHE_MARK),
        "provider_specific_fields": all_false,
        "images": only_values([], why="pictures belong into the content"),
        "thinking_blocks": only_values([], why=NOT_READ),
        "reasoning_details": only_values([], why=NOT_READ),
    },
    "LangChain": {
        "additional_kwargs": only_values({}, why="they would have to be read"),
        "response_metadata": dropped(dict, why=SENT_BACK),
        "example": dropped(bool),
    },
    "Open WebUI": {
        "parentId": dropped(str, why=_IDENTITY),
        "childrenIds": dropped(list, why=_IDENTITY),
        "models": dropped(list, why=_IDENTITY),
        "modelName": dropped(str, why=_IDENTITY),
        "modelIdx": dropped(float, why=_IDENTITY),
        "done": dropped(bool, why=SENT_BACK),
        "files": only_values([], why="pictures belong into the content"),
        "sources": only_values([], why="only the content is read"),
    },
    "others": {
        "prefix": only_values(False, why="use continue_final_message"),
        "partial": only_values(False, why="use continue_final_message"),
        "opts": dropped(dict, why="CodeCompanion keeps it for itself"),
    },
}
"""Fields of a message beside OpenAI's own, by client."""

PART_FIELDS: Mapping[str, DescribedRule] = {
    "cache_control": dropped(dict, why=_CACHE_MARK),
    "annotations": only_values([], why="only an empty list is taken back"),
    "logprobs": dropped(list, why=SENT_BACK),
    "uuid": dropped(str, why="pictures are known by their bytes"),
}
"""Fields of every part of a message beside OpenAI's own."""

URL_FIELDS: Mapping[str, DescribedRule] = {
    "format": dropped(str, why="a file's format is read from its bytes"),
}
"""Fields of `image_url` beside OpenAI's own."""


def merged(tables: Tables) -> dict[str, DescribedRule]:
    """All rules by field. A field of several clients has one rule."""
    found: dict[str, DescribedRule] = {}
    for table in tables.values():
        for name, rule in table.items():
            assert found.setdefault(name, rule) is rule, name
    return found
