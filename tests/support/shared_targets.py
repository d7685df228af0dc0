"""The arrays that a background save copies variables into."""

from __future__ import annotations

from typing import Any

import numpy as np

from ckptstore.keras.state.arrays import shape_and_dtype
from ckptstore.system.shared_memory import SharedMemory, aligned


def shared_targets(variables: list[Any]) -> list[np.ndarray]:
    """Return an array in shared memory for each variable, as in a slot of a background save."""
    kinds = [shape_and_dtype(variable) for variable in variables]
    sizes = [aligned(max(1, int(np.prod(shape)) * dtype.itemsize)) for shape, dtype in kinds]
    memory = SharedMemory.shareable()
    memory.reserve(sum(sizes))
    ends = np.cumsum(sizes).tolist()
    return [memory.array(end - size, *kind) for end, size, kind in zip(ends, sizes, kinds, strict=True)]
