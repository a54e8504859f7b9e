"""Names of models: which are allowed, which part of a path they are, and their aliases."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import compile_path

from predictors.errors import InvalidRequest
from predictors.protocol.names import (
    MAX_NAME,
    RESERVED,
    V1_ACTIONS,
    check_name,
    check_names,
    read_aliases,
)
from tests.cpu_time import assert_linear

GOOD = [
    "flux", "FLUX.1-dev", "black-forest-labs/FLUX.1-dev", "a/b/c", "qwen2.5-vl:7b", "user@team/x",
    "a+b~c", "_x", "0", "infer", "versions/1", "ready", "a" * MAX_NAME,
]  # fmt: skip
BAD = [
    "", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/.", "a b", "a\tb", "a\n", "a%2Fb",
    "a?b", "a#b", "a\\b", "é", "名前", "a=b", "a,b", "a'b", 'a"b', "<a>", "-a", ":predict", "a\x00",
    "a" * (MAX_NAME + 1), "a/versions/1", "a/infer", "a/ready", "a/b/config", "a/load", "a:predict",
    "a/b:explain",
]  # fmt: skip
ROUTES = (
    "/v2/models/{model:model}/infer",
    "/v2/models/{model:model}/versions/{version}/infer",
    "/v2/models/{model:model}/ready",
    "/v2/models/{model:model}/versions/{version}/ready",
    "/v2/models/{model:model}/versions/{version}",
    "/v2/models/{model:model}",
    "/v1/models/{model:model}:predict",
)
PATTERNS = {route: compile_path(route)[0] for route in ROUTES}


@pytest.mark.parametrize("name", GOOD, ids=lambda name: name[:20])
def test_an_ordinary_name_is_allowed(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", BAD, ids=lambda name: repr(name[:20]))
def test_a_name_that_a_path_can_not_carry_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_name(name)
    assert repr(name[:MAX_NAME]) in caught.value.message


PARTS = st.one_of(st.sampled_from([*RESERVED, "a", "b.c", "1"]), st.from_regex(r"[a-z1:.]{1,4}"))


@given(st.lists(PARTS, min_size=1, max_size=4).map("/".join), st.sampled_from(ROUTES))
def test_a_path_with_an_allowed_name_has_one_meaning(name: str, route: str) -> None:
    try:
        check_name(name)
    except InvalidRequest:
        return
    path = route.replace("{model:model}", name).replace("{version}", "1")
    found = {
        pattern: match.groupdict() for pattern in ROUTES if (match := PATTERNS[pattern].match(path))
    }
    # the GET of a model's metadata takes V1's POST address too, as a name that is never served
    assert list(found) == [route] or route.endswith(":predict")
    assert found[route]["model"] == name
    for match in found.values():
        if match["model"] != name:
            assert match["model"].endswith(V1_ACTIONS)


@pytest.mark.parametrize("text", ["a/", "/versions/a", "infer/", "a", "/infer", "//"])
def test_a_long_path_is_read_in_linear_time(text: str) -> None:
    def matching(count: int) -> Callable[[], object]:
        path = "/v2/models/" + text * count
        return lambda: [pattern.match(path) for pattern in PATTERNS.values()]

    assert_linear(matching, 20_000 // len(text))


def test_aliases_are_pairs_of_a_name_and_a_model() -> None:
    assert read_aliases("") == {}
    assert read_aliases(" gpt-4o = qwen-vl, org/x=flux ,") == {"gpt-4o": "qwen-vl", "org/x": "flux"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpt-4o", "ALIAS=MODEL, not 'gpt-4o'"),
        ("gpt-4o=", "ALIAS=MODEL"),
        ("=flux", "the alias '' is not allowed"),
        ("a b=flux", "the alias 'a b' is not allowed"),
        ("a=flux,a=flux", "the alias 'a' is given twice"),
        ("flux=qwen-vl", "the alias 'flux' is the name of a model"),
        ("a=fluks", "the alias 'a' names no model: 'fluks'; served: flux, qwen-vl"),
        ("a=flux,b=a", "the alias 'b' names no model: 'a'"),
    ],
)
def test_an_alias_that_means_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        check_names(["flux", "qwen-vl"], read_aliases(text))


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="'a' is given twice"):
        check_names(["a", "b", "a"], {})
