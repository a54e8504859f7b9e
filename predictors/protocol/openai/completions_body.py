"""The body of `POST /v1/completions`, checked field by field: prompts without a chat template.

Worker processes import this module, so nothing here loads gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from predictors.errors import InvalidRequest
from predictors.protocol.http.bodies import parse_json
from predictors.protocol.openai import chat_body
from predictors.protocol.openai.chat_body import MAX_TOKENS, BodyOfChat, chat_of
from predictors.protocol.openai.clients import (
    CHAT_CLIENTS,
    LLAMA,
    ROUTER_FIELDS,
    Tables,
    merged,
)
from predictors.protocol.openai.fields import (
    CLIENT_FIELDS,
    DecodedBody,
    DescribedRule,
    check_body,
    described,
    dropped,
    flag,
    only_values,
    read_fields,
    require,
    said,
    text,
    whole,
    wrong,
)
from predictors.protocol.openai.format_fields import FORMAT_FIELDS
from predictors.protocol.openai.messages import MAX_TEXT
from predictors.protocol.openai.token_fields import MAX_TOP_LOGPROBS

MAX_PROMPTS = 128
MAX_IDS = 100_000  # of one prompt of token ids; a body has at most `MAX_VALUES`
DEFAULT_TOKENS = 16
"""`max_tokens` of a request that names none, as for OpenAI."""

Prompt = str | tuple[int, ...]
"""A text, or ids of the model's tokens."""

SPELT = {"messages": "prompt"}
"""Fields of a chat as this route calls them."""


# Without slots: pickle restores an object that has slots through a Python function.
@dataclass(frozen=True)
class CompletionsBody(BodyOfChat):
    """A checked body. Its `chat` has no messages."""

    spelt = SPELT
    prompts: tuple[Prompt, ...]
    echo: bool = False

    @property
    def n(self) -> int:
        """Choices of all prompts together."""
        return self.chat.n * len(self.prompts)


def decode_completions_body(raw: bytes) -> DecodedBody[CompletionsBody]:
    """Raises `InvalidRequest` for text that is not JSON."""
    return check_body(parse_json(raw), read_completions_body)


def read_completions_body(body: object) -> CompletionsBody:
    """Raises `InvalidRequest` that names the field."""
    read = read_fields(body, FIELDS)
    require(read, "model", "prompt")
    prompts, echo = read.pop("prompt"), read.pop("echo", False)
    best_of, count = read.pop("best_of", None), read.get("n", 1)
    if best_of not in (None, count):
        message = f"best_of {best_of} is not supported: every choice is answered; leave it out"
        raise InvalidRequest(f"{message}, or give n {count}", param="best_of")
    if echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidRequest("echo needs prompts of text, not of token ids", param="echo")
    if "logprobs" in read:
        if echo:
            message = "log probabilities of the prompt are not computed; leave echo or logprobs out"
            raise InvalidRequest(message, param="logprobs")
        read["top_logprobs"], read["logprobs"] = read["logprobs"], True
    read.setdefault("max_tokens", DEFAULT_TOKENS)
    return CompletionsBody(chat_of({"messages": (), **read}), prompts, echo)


# -- fields ----------------------------------------------------------------------------------------
_PROMPT_TEXT = text(at_most=MAX_TEXT)
_IDS_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_IDS,
    "items": {"type": "integer", "minimum": 0},
}


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """A list of token ids. Whether the model has such tokens is checked by its codec."""
    if len(value) > MAX_IDS:
        message = f"{name} has {len(value)} token ids; at most {MAX_IDS} are taken"
        raise InvalidRequest(message, param=name)
    for i, each in enumerate(value):
        if type(each) is not int or not 0 <= each <= MAX_TOKENS:
            raise wrong(f"{name}[{i}]", f"a token id from 0 to {MAX_TOKENS}", each)
    return tuple(value)


def _prompt(name: str, value: Any) -> Prompt:
    if isinstance(value, str):
        found: Prompt = _PROMPT_TEXT.check(name, value)
    elif isinstance(value, list):
        found = token_ids(name, value)
    else:
        raise wrong(name, "a string or a list of token ids", value)
    if not found:
        raise InvalidRequest(f"{name} is empty; at least one token is needed", param=name)
    return found


@described(
    {
        "anyOf": [
            {**_PROMPT_TEXT.schema, "minLength": 1},
            _IDS_SCHEMA,
            {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_PROMPTS,
                "items": {"anyOf": [{**_PROMPT_TEXT.schema, "minLength": 1}, _IDS_SCHEMA]},
            },
        ]
    }
)
def _prompts(name: str, value: Any) -> tuple[Prompt, ...]:
    is_list = isinstance(value, list) and value != []
    if not is_list or isinstance(value[0], int | float):
        return (_prompt(name, value),)
    if len(value) > MAX_PROMPTS:
        message = f"{name} has {len(value)} prompts; at most {MAX_PROMPTS} are taken"
        raise InvalidRequest(message, param=name)
    return tuple(_prompt(f"{name}[{i}]", each) for i, each in enumerate(value))


FROM_CHAT = (
    "model", "max_tokens", "temperature", "top_p", "top_k", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "stop", "n", "loras", "ignore_eos", "stream",
    "stream_options", "min_p", "logit_bias", "min_tokens", "stop_token_ids",
    "include_stop_str_in_output", "skip_special_tokens", "return_tokens_as_token_ids",
    *FORMAT_FIELDS,
)  # fmt: skip
"""Fields with the meaning that they have in a chat."""

OWN_FIELDS: dict[str, DescribedRule] = {
    **{name: chat_body.FIELDS[name] for name in FROM_CHAT},
    "prompt": said(
        "A text, ids of tokens, or a list of either; each is answered on its own.", _prompts
    ),
    "echo": said("Each answer begins with its prompt.", flag, default=False),
    "logprobs": said(
        "Log probabilities of the answer's tokens, with so many of the likeliest at each place.",
        whole(0, MAX_TOP_LOGPROBS),
    ),
    "best_of": said("May only be as `n`: every answer is returned.", whole(1, chat_body.MAX_N)),
    **CLIENT_FIELDS,
    "add_special_tokens": dropped(bool, why="the models here begin no text with a token of theirs"),
    "suffix": only_values("", why="the models here were not trained to fill in a text"),
}
"""OpenAI's and our own fields."""
_OF_CHATS = {
    "add_special_tokens", "best_of", "chat_template", "documents", "echo", "continue_final_message",
    "min_dynamic_patch", "max_dynamic_patch", "use_audio_in_video",
    "separate_reasoning", "stream_reasoning", "input_ids",
}  # fmt: skip
"""Fields of other servers' chats that are others in their completions, or none."""
_SAMPLERS = (
    "mirostat", "mirostat_tau", "mirostat_eta", "typical_p", "tfs_z", "top_a", "top_n_sigma",
    "dynatemp_range", "dynatemp_exponent", "xtc_probability", "xtc_threshold", "dry_multiplier",
    "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers",
    "repeat_penalty", "repeat_last_n", "cache_prompt", "id_slot", "n_keep", "n_predict", "n_probs",
    "samplers", "n_discard", "t_max_predict_ms",
)  # fmt: skip


def _of_completions(client: str) -> dict[str, DescribedRule]:
    table = CHAT_CLIENTS[client]
    return {name: rule for name, rule in table.items() if name not in _OF_CHATS}


CLIENTS: Tables = {
    "LiteLLM": ROUTER_FIELDS,
    "vLLM": {
        **_of_completions("vLLM"),
        "session_id": CHAT_CLIENTS["Open WebUI"]["session_id"],
    },
    "SGLang": _of_completions("SGLang"),
    LLAMA: {name: CHAT_CLIENTS[LLAMA][name] for name in _SAMPLERS},
}
"""Fields that other servers take on `POST /v1/completions`, with the rules of chat."""
FIELDS: dict[str, DescribedRule] = {**merged(CLIENTS), **OWN_FIELDS}
