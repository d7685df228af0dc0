"""Large arrays as torch tensors for Keras' loading, which would copy an array twice."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ckptstore.system.arrays import Array

# Bytes from which on a copy is worth avoiding.
_LARGE = 1 << 20
# Dtypes that Keras and torch share. Keras converts others, and not every device has float64.
_DTYPES = frozenset(("float16", "float32", "int8", "int16", "int32", "int64", "uint8", "bool"))


class TensorViews(Mapping[str, Any]):
    """Variables by path, large ones as tensors that share the arrays' memory: for Keras' own loading, on torch.

    The reader must copy a tensor, and neither write to it nor keep it: the memory may belong to a file.

    Args:
        arrays: The same variables as arrays; each is read on access.

    Example:
        >>> TensorViews({"layers/dense/vars/0": np.zeros(3)})["layers/dense/vars/0"]
        array([0., 0., 0.])
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, path: str) -> Any:
        array = self._arrays[path]
        # torch needs aligned arrays; those of an archive may not be.
        is_plain = array.dtype.name in _DTYPES and array.dtype.isnative and array.flags.aligned
        return _tensor(array) if is_plain and array.nbytes >= _LARGE else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def _tensor(array: Array) -> Any:
    import torch

    # torch warns of a read-only array, once per process: so it gets a writable one over the same memory.
    memory: Any = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    memory.owner = array
    return torch.from_numpy(np.frombuffer(memory, array.dtype).reshape(array.shape))
