"""A look at the values of weights that were read: damage that no header shows."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from predictors.errors import EngineFailed

log = logging.getLogger(__name__)

LARGEST = 1e6
"""Far above any trained weight; a flipped bit of an exponent gives 1e30 and more."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_magnitudes(filled: Iterable[tuple[Tensor, str]]) -> None:
    """Raise `EngineFailed` for a weight with NaN, an infinity or a magnitude beyond `LARGEST`.

    `filled` are tensors with their stored names; fp8 values are bounded and not looked at. Waits
    for the device, once.
    """
    named = [(tensor, name) for tensor, name in filled if tensor.dtype in DTYPES and len(tensor)]
    if not named:
        return
    with torch.inference_mode():
        largest = [torch.linalg.vector_norm(tensor, torch.inf).float() for tensor, _ in named]
        found = torch.stack(largest).tolist()
    for value, (tensor, name) in zip(found, named, strict=True):
        if value == 0 and tensor.ndim > 1:
            log.warning("tensor %s holds only zeros; is the file complete?", name)
        if not value <= LARGEST:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise EngineFailed(
                f"tensor {name} holds {value:.3g}; trained weights are finite and far below "
                f"{LARGEST:.0e}: the file is damaged (fetch it again), or {dtype} too narrow for "
                "it (PREDICTORS_COMPUTE_DTYPE)"
            )
