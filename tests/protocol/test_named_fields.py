"""Messages about a picture or a film begin with its field."""

from __future__ import annotations

import pytest

from predictors.errors import TooLarge
from predictors.protocol.named_fields import naming_field


def test_a_refusal_keeps_its_kind_and_gets_field_and_row() -> None:
    with pytest.raises(TooLarge) as caught, naming_field("image", 3):
        raise TooLarge("has 9 pixels")
    assert caught.value.message == "row 3: image has 9 pixels"
    assert (caught.value.param, caught.value.row) == ("image", 3)


def test_every_other_error_passes_as_it_is() -> None:
    with pytest.raises(KeyError, match=r"^'has 9 pixels'$"), naming_field("image", None):
        raise KeyError("has 9 pixels")
