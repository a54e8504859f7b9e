"""Triton's interpreter as the tests need it: importing this module mends it once.

Triton 3.6 turns a loop bound into a number with `int(array)`, which numpy 2.4 refuses for arrays
of one dimension, as all the interpreter's scalars are. Triton 3.6 and 3.9 lose the carry when
rounding makes a mantissa overflow, so that 30 becomes 16 in e4m3 and 1.999 becomes 1 in bfloat16:
torch rounds here. Both widen a scalar predicate to integers of what was compared; as a part of a
mask 3.9 refuses that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

# torch brings Triton on Linux only
interpreter = pytest.importorskip("triton.runtime.interpreter", reason="Triton is not installed")
tl = pytest.importorskip("triton.language")

_patch = interpreter._patch_lang_tensor


def _patch_with_bounds(tensor: Any, scope: Any) -> None:
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_with_bounds


_convert = interpreter._convert_float
_NARROW = {tl.float8e4nv: torch.float8_e4m3fn, tl.bfloat16: torch.bfloat16}


def _convert_with_carry(values: Any, source: Any, target: Any, rounding: Any) -> Any:
    if source != tl.float32 or target not in _NARROW:
        return _convert(values, source, target, rounding)
    wide = torch.from_numpy(np.ascontiguousarray(values).view(np.float32).copy())
    bits = torch.uint8 if target == tl.float8e4nv else torch.int16
    narrow = wide.to(_NARROW[target]).view(bits).numpy()
    return narrow if bits == torch.uint8 else narrow.view(np.uint16)


interpreter._convert_float = _convert_with_carry


_splat = interpreter.InterpreterBuilder.create_splat


def _splat_of_predicates(builder: Any, to: Any, scalar: Any) -> Any:
    """A comparison's result calls itself an integer, like its operands, and holds bools."""
    if scalar.data.dtype != np.bool_:
        return _splat(builder, to, scalar)
    filled = np.full(to.shape, scalar.data.item(), dtype=np.bool_)
    return interpreter.TensorHandle(filled, tl.int1)


interpreter.InterpreterBuilder.create_splat = _splat_of_predicates
