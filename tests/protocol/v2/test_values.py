"""Typed access to V2 inputs and parameters: each value has one meaning or an error names it."""

from __future__ import annotations

from typing import Any

import pytest

from predictors.errors import InvalidRequest
from predictors.protocol.v2.values import (
    InputTensors,
    Parameters,
    Tensor,
    count_rows,
)


def tensor(name: str = "prompt", datatype: str = "BYTES", **more: Any) -> Tensor:
    data = more.pop("data", [b"a"])
    return Tensor(name, datatype, more.pop("shape", (len(data),)), data, **more)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_shapes_n_and_n_by_1_are_rows(shape: tuple[int, ...]) -> None:
    inputs = InputTensors([tensor(data=[b"a", b"b"], shape=shape)])
    assert inputs.read_text("prompt") == ["a", "b"]
    assert inputs.read_text("other") is None
    inputs.reject_unread()


@pytest.mark.parametrize("shape", [(), (1, 2), (2, 2), (1, 1, 1), (0,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="input 'prompt' has"):
        InputTensors([tensor(shape=shape)]).read_bytes("prompt")


def test_files_are_raw_or_base64_in_text() -> None:
    raw = InputTensors([tensor(data=[b"\xff"])]).read_files("prompt")
    text = InputTensors([tensor(data=[b"/w=="], text=True)]).read_files("prompt")
    assert raw == text == [b"\xff"]
    with pytest.raises(InvalidRequest, match="row 1: prompt is not base64"):
        InputTensors([tensor(data=[b"/w==", b"!"], text=True)]).read_files("prompt")


@pytest.mark.parametrize("datatype", ["INT64", "INT32", "UINT8"])
def test_every_integer_datatype_is_accepted(datatype: str) -> None:
    assert InputTensors([tensor("seed", datatype, data=[7])]).read_ints("seed") == [7]


@pytest.mark.parametrize("datatype", ["FP32", "BOOL", "BYTES"])
def test_other_datatypes_are_refused(datatype: str) -> None:
    with pytest.raises(InvalidRequest, match="it takes INT64"):
        InputTensors([tensor("seed", datatype, data=[7])]).read_ints("seed")


def test_an_unread_input_is_unknown() -> None:
    inputs = InputTensors([tensor("prompt"), tensor("promt")])
    inputs.read_text("prompt")
    with pytest.raises(InvalidRequest, match="unknown input 'promt'") as caught:
        inputs.reject_unread()
    assert caught.value.param == "promt"


def test_an_input_given_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="given twice"):
        InputTensors([tensor(), tensor()])


@pytest.mark.parametrize("value", [28, 28.0, "28", " 28 ", "+28"])
def test_an_integer_may_be_an_int_float_or_string(value: Any) -> None:
    assert Parameters({"steps": value}).read_int("steps") == 28


@pytest.mark.parametrize("value", [1.5, "1.5", "x", "", True, False, "--1", "9" * 40, "²"])
def test_a_value_that_is_not_an_integer_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="steps must be a whole number") as caught:
        Parameters({"steps": value}).read_int("steps")
    assert caught.value.param == "steps"


@pytest.mark.parametrize("value", [3.5, "3.5", "35e-1"])
def test_a_float_may_be_a_string(value: Any) -> None:
    assert Parameters({"scale": value}).read_float("scale") == 3.5


@pytest.mark.parametrize("value", ["nan", "inf", float("nan"), float("inf"), True, "x", 10**400])
def test_a_value_that_is_not_finite_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="scale must be a finite number"):
        Parameters({"scale": value}).read_float("scale")


def test_a_string_must_be_a_string() -> None:
    parameters = Parameters({"format": "png", "size": 7})
    assert parameters.read_text("format") == "png"
    assert parameters.read_text("absent") is None
    with pytest.raises(InvalidRequest, match="size must be a string, not '7'"):
        parameters.read_text("size")


def test_an_unread_parameter_is_unknown() -> None:
    parameters = Parameters({"stepz": 1, "binary_data_output": True})
    assert parameters.read_int("steps") is None
    with pytest.raises(InvalidRequest, match="unknown parameter 'stepz'"):
        parameters.reject_unread()
    Parameters({"binary_data_output": True}).reject_unread()


def test_columns_must_have_the_same_number_of_rows() -> None:
    assert count_rows(prompt=["a", "b"], seed=None) == 2
    assert count_rows(prompt=None) == 0
    with pytest.raises(InvalidRequest, match="prompt has 2, seed has 1"):
        count_rows(prompt=["a", "b"], seed=[1])
