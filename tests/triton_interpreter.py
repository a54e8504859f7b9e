"""Triton's interpreter as the tests need it: importing this module mends it once.

Triton 3.6 turns a loop bound into a number with `int(array)`, which numpy 2.4 refuses for arrays
of one dimension, as all the interpreter's scalars are. Triton 3.6 and 3.9 lose the carry when
rounding makes a mantissa overflow, so that 30 becomes 16 in e4m3 and 1.999 becomes 1 in bfloat16:
torch rounds here. Both widen a scalar predicate to integers of what was compared; as a part of a
mask 3.9 refuses that.

Both patch the whole language at each call of a function of a kernel, and make the name of its type
and a table of numpy's for each tensor. Here that is done once: a kernel takes a third of the time.
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


_patch_language = interpreter._patch_lang
_OWN = (interpreter.__name__, __name__)


def _is_patched(language: Any) -> bool:
    """Its functions are the interpreter's, as from the beginning of a launch to its end."""
    functions = language.range, getattr(language.tensor, "__index__", None)
    return all(getattr(function, "__module__", "") in _OWN for function in functions)


def _patch_once(function: Any) -> Any:
    """Called with the kernel, and with each function that it calls."""
    seen = [value for value in function.__globals__.values() if value is tl or value is tl.core]
    if seen and all(map(_is_patched, seen)):
        return interpreter._LangPatchScope()
    return _patch_language(function)


interpreter._patch_lang = _patch_once


_find_numpy_type = interpreter._get_np_dtype
_init_tensor = tl.core.tensor.__init__
_init_block_type = tl.core.block_type.__init__
_numpy_types: dict[str, Any] = {}  # by the type's name
_of_tensors: dict[str, dict[str, Any]] = {}  # what a tensor's type decides, by its name
_of_block_types: dict[Any, dict[str, Any]] = {}


def _find_numpy_type_once(type: Any) -> Any:
    if type.name not in _numpy_types:
        _numpy_types[type.name] = _find_numpy_type(type)
    return _numpy_types[type.name]


def _init_tensor_once(self: Any, handle: Any, type: Any) -> None:
    if type.name not in _of_tensors:
        _init_tensor(self, handle, type)
        _of_tensors[type.name] = {**vars(self), "handle": None}
    vars(self).update(_of_tensors[type.name], handle=handle, type=type, dtype=type.scalar)


def _init_block_type_once(self: Any, element_ty: Any, shape: Any) -> None:
    sizes = [size.value if isinstance(size, tl.constexpr) else size for size in shape]
    key = (element_ty.name, *sizes)
    if key not in _of_block_types:
        _init_block_type(self, element_ty, shape)
        _of_block_types[key] = vars(self).copy()
    vars(self).update(_of_block_types[key], element_ty=element_ty)


interpreter._get_np_dtype = _find_numpy_type_once
tl.core.tensor.__init__ = _init_tensor_once
tl.core.block_type.__init__ = _init_block_type_once
