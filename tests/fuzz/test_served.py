"""The documents that schemathesis is given."""

from __future__ import annotations

import json
from itertools import chain, combinations

from jsonschema import Draft202012Validator

from predictors.protocol.openai import edits_body
from predictors.protocol.openapi import openai
from tests.fuzz.served import with_alternatives

FIELDS = {"model": "flux", "prompt": "a", "image": "x", "image[]": ["x"], "mask": "x"}


def test_one_of_two_fields_is_said_without_a_condition_and_means_the_same() -> None:
    own = openai._form_schema(edits_body.FIELDS, ("model", "prompt"))
    given = with_alternatives({"schemas": [own]})["schemas"][0]
    assert '"if"' in json.dumps(own)
    assert '"if"' not in json.dumps(given)
    subsets = chain.from_iterable(combinations(FIELDS, n) for n in range(len(FIELDS) + 1))
    verdicts = set()
    for names in subsets:
        body = {name: FIELDS[name] for name in names}
        found = Draft202012Validator(own).is_valid(body)
        assert Draft202012Validator(given).is_valid(body) == found, body
        verdicts.add(found)
    assert verdicts == {True, False}
