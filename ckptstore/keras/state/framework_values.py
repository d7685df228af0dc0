"""Values of torch and JAX that are no numpy arrays: tagged on the way into a document, and made again on the way out.

Tensors come back in host memory; an optimizer moves them to its parameters' device. No framework is imported for that
which was not in use at the save.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ckptstore.keras.state.backend_arrays import as_numpy, torch_array
from ckptstore.system.arrays import Array

_TENSOR, _DTYPE, _DEVICE, _SIZE = "torch", "torch.dtype", "torch.device", "torch.Size"
_JAX, _KEY = "jax", "jax.key"
TAGS = (_TENSOR, _DTYPE, _DEVICE, _SIZE, _JAX, _KEY)


@dataclass(frozen=True, slots=True)
class FrameworkValue:
    """A value of torch or JAX, taken apart.

    Attributes:
        tag: One of `TAGS`.
        facts: JSON values that are needed to make it again.
        array: Its values, or None.
    """

    tag: str
    facts: Any
    array: Array | None = None


def encode(value: Any) -> FrameworkValue | None:
    """Take a value of torch or JAX apart; None for anything else.

    Raises:
        TypeError: A tensor that is not an array in memory: it is sparse, symbolic or quantized.
    """
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and hasattr(torch, "Tensor"):
        if isinstance(value, torch.Tensor):
            return FrameworkValue(_TENSOR, None, torch_array(value))
        if isinstance(value, torch.dtype):
            return FrameworkValue(_DTYPE, str(value).removeprefix("torch."))
        if isinstance(value, torch.device):
            return FrameworkValue(_DEVICE, str(value))
        if isinstance(value, torch.Size):
            return FrameworkValue(_SIZE, list(value))
    if jax is not None and isinstance(value, getattr(jax, "Array", ())):
        if is_key(value):
            return FrameworkValue(_KEY, str(jax.random.key_impl(value)), as_numpy(jax.random.key_data(value)))
        return FrameworkValue(_JAX, bool(getattr(value, "weak_type", False)), as_numpy(value))
    return None


def decode(tag: str, facts: Any, array: Array | None) -> Any:
    """Make a value again from its parts.

    Raises:
        ImportError: torch or JAX, which the value belongs to, is not installed.

    Example:
        >>> import torch
        >>> found = encode(torch.tensor([1.5], dtype=torch.bfloat16))
        >>> decode(found.tag, found.facts, found.array)
        tensor([1.5000], dtype=torch.bfloat16)
    """
    if tag in (_JAX, _KEY):
        assert array is not None
        return _jax_value(tag, facts, array)
    import torch

    if tag == _TENSOR:
        assert array is not None
        return tensor_of(array)
    if tag == _DTYPE:
        return getattr(torch, facts)
    return torch.device(facts) if tag == _DEVICE else torch.Size(facts)


def is_key(value: Any) -> bool:
    """Return True for a typed random key of JAX, which is an array that numpy cannot express."""
    jax: Any = sys.modules.get("jax")
    return (
        jax is not None
        and isinstance(value, jax.Array)
        and bool(jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key))
    )


def tensor_of(array: Array) -> Any:
    """Return a tensor over an array's memory, which must be writable."""
    import torch

    if not hasattr(ml_dtypes, array.dtype.name):
        return torch.from_numpy(array)
    # numpy lacks this dtype, and torch does not know ml_dtypes: the bits pass as integers of the same width.
    bits = array.view({1: np.uint8, 2: np.int16}[array.dtype.itemsize])
    return torch.from_numpy(bits).view(getattr(torch, array.dtype.name))


def _jax_value(tag: str, facts: Any, array: Array) -> Any:
    import jax

    if tag == _KEY:
        return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=facts)
    if facts and array.ndim == 0 and array.dtype.kind in "bif":
        # A weak type yields to those that it is combined with; a plain Python number makes one.
        value = jax.numpy.asarray(array.item())
        if value.dtype == array.dtype:
            return value
    return jax.numpy.asarray(array)
