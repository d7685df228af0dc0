"""Hands Keras large arrays as torch's tensors while it loads: from an array it would make a copy, and copy that."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ckptstore.system.arrays import Array

# Bytes from which on a copy is worth avoiding.
_LARGE = 1 << 20
# What Keras and torch have the same dtypes for; of others Keras makes something else, and not every device has float64.
_DTYPES = frozenset(("float16", "float32", "int8", "int16", "int32", "int64", "uint8", "bool"))


class TensorViews(Mapping[str, Any]):
    """Variables by path, large ones as tensors that look at the arrays' memory: for Keras' own loading, on torch.

    Whoever is given one copies it, and neither writes to it nor keeps it: the memory may be a file's.

    Args:
        arrays: The same as arrays, each asked for when it is needed.

    Example:
        >>> TensorViews({"layers/dense/vars/0": np.zeros(3)})["layers/dense/vars/0"]
        array([0., 0., 0.])
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, path: str) -> Any:
        array = self._arrays[path]
        # torch has no arrays that lie askew, as those of an archive may.
        is_plain = array.dtype.name in _DTYPES and array.dtype.isnative and array.flags.aligned
        return _tensor(array) if is_plain and array.nbytes >= _LARGE else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _tensor(array: Array) -> Any:
    import torch

    # Of an array that nobody may write to torch warns, once for the whole process: so it is given another one.
    memory: Any = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    memory.owner = array
    return torch.from_numpy(np.frombuffer(memory, array.dtype).reshape(array.shape))
