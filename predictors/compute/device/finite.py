"""The check of warm-up results for NaN and infinity, which would mean damaged weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from predictors.errors import EngineFailed

DAMAGED = "the weights are damaged, or the dtype is too narrow for them (PREDICTORS_COMPUTE_DTYPE)"


def check_finite(tensors: Iterable[Tensor], what: str) -> None:
    """Raise `EngineFailed` if any value is NaN or infinite. Waits for the device, so it is for
    warm-up only."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise EngineFailed(f"{what} are not finite; {DAMAGED}")
