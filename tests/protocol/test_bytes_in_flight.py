"""The bytes that requests hold together: what is refused for now, and what never fits."""

from __future__ import annotations

import pytest

from predictors.errors import Overloaded, TooLarge
from predictors.protocol.bytes_in_flight import UNCOUNTED_BYTES, BytesInFlight, Charge

LIMIT = 1000


def total_of() -> BytesInFlight:
    return BytesInFlight(LIMIT, lambda used: None)


def test_what_fits_beside_no_other_request_is_refused_only_for_now() -> None:
    total = total_of()
    first, second = Charge(total), Charge(total)
    first.add(UNCOUNTED_BYTES + 600)
    with pytest.raises(Overloaded, match="hold 600 bytes already, and at most 1000 are taken"):
        second.add(total.most_of_one)
    first.close()
    second.close()
    Charge(total).add(total.most_of_one)
    assert total.used == LIMIT


def test_what_never_fits_is_too_large_whoever_else_is_there() -> None:
    total = total_of()
    for others in (0, 1000):
        total.add(others)
        with pytest.raises(TooLarge, match="takes 66537 bytes; at most 66536 are taken for one"):
            Charge(total).add(total.most_of_one + 1)
    assert total.used == 1000


def test_parts_that_together_never_fit_are_too_large_at_the_last_one() -> None:
    total = total_of()
    charge = Charge(total)
    charge.add(UNCOUNTED_BYTES)
    charge.add(900)
    with pytest.raises(TooLarge, match="takes 66637 bytes"):
        charge.add(201)
    charge.close()
    assert total.used == 0


def test_a_refused_part_is_not_charged() -> None:
    total = total_of()
    charge = Charge(total)
    charge.add(UNCOUNTED_BYTES + 500)
    with pytest.raises(TooLarge):
        charge.add(LIMIT)
    assert charge.num_bytes == total.used == 500
