"""Hands Keras large arrays as torch's tensors while it loads: from an array it would make a copy, and copy that."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ckptstore.formats.snapshot import Array

# Bytes from which on a copy is worth avoiding.
_LARGE = 1 << 20
# What Keras and torch have the same dtypes for; of others Keras makes something else.
_DTYPES = frozenset(("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"))


class Tensors(Mapping[str, Any]):
    """Variables by path, large ones as tensors that look at the arrays' memory: for Keras' own loading, on torch.

    Args:
        arrays: The same as arrays, each asked for when it is needed.

    Example:
        >>> import numpy as np
        >>> Tensors({"layers/dense/vars/0": np.zeros(3)})["layers/dense/vars/0"]
        array([0., 0., 0.])
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, path: str) -> Any:
        array = self._arrays[path]
        if array.nbytes < _LARGE or array.dtype.name not in _DTYPES or not array.dtype.isnative:
            return array
        return _tensor(array)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _tensor(array: Array) -> Any:
    import torch

    with warnings.catch_warnings():
        # That nobody may write to it: nobody does.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ", category=UserWarning)
        return torch.from_numpy(array)
