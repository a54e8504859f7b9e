"""Fields that ask for an answer without reasoning, or with a bound on it, as clients and servers
spell them. They change nothing for a model that never reasons; one that always does refuses them.
"""

from __future__ import annotations

import json

from predictors.errors import InvalidRequest
from predictors.protocol.openai.fields import DescribedRule, dropped, naming, only_values

NO_REASONING = "no request sets how a model reasons"
IN_THE_TEXT = "reasoning is part of an answer's text"
NOT_READ = "no model here reads earlier reasoning"


def limits_reasoning(rule: DescribedRule, *unlimited: object) -> DescribedRule:
    """The rule of a field that asks for less reasoning, except at the values in `unlimited`."""
    rest = "".join(f", but for `{json.dumps(each)}`" for each in unlimited)
    return naming(
        rule,
        lambda value: all(value != each for each in unlimited),
        f"Thinking models refuse it{rest}",
    )


_BUDGET = dropped(float, why=NO_REASONING)
_NO_THINKING = only_values({"type": "disabled"}, why=NO_REASONING)
NO_EFFORT = limits_reasoning(only_values("none", why=NO_REASONING))
"""OpenAI's `reasoning_effort`, and `effort` of its Responses."""
LIMITS_OF_REASONING: dict[str, DescribedRule] = {
    "reasoning_effort": NO_EFFORT,
    "reasoning": limits_reasoning(
        only_values({}, {"enabled": False}, {"effort": "none"}, why=NO_REASONING), {}
    ),
    "include_reasoning": limits_reasoning(dropped(bool, why=IN_THE_TEXT), True),
    "enable_thinking": limits_reasoning(only_values(False, why=NO_REASONING)),
    "thinking": limits_reasoning(_NO_THINKING),
    "think": limits_reasoning(only_values(False, why=NO_REASONING)),
    "thinking_budget": limits_reasoning(_BUDGET),
    "thinking_token_budget": limits_reasoning(_BUDGET),
}
"""By name; of a chat, and some of other routes."""


def always_reasons(field: str) -> InvalidRequest:
    """The failure of a request for less reasoning, by the name of its field."""
    return InvalidRequest(
        f"{field!a} is not supported: this model's answers always begin with its reasoning, which "
        "a request can neither turn off nor bound; leave the field out and cut the text at "
        "</think>, or ask an Instruct model",
        param=field,
    )
