"""Values of a user's attribute as plain state, and back into the live value, in place where that is possible.

Variables are assigned to, tensors and arrays of the same shape are overwritten, and lists, dicts, sets and generators
stay the same objects: traced functions and other holders of them see the restored values.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import xxhash

from ckptstore.errors import InvalidArgumentError
from ckptstore.keras.state import generators, tree
from ckptstore.keras.state.assigning import assign_in_place
from ckptstore.keras.state.backend_arrays import as_numpy
from ckptstore.keras.state.generators import GeneratorState
from ckptstore.keras.state.shards import placed_like

# Elements of one value, at any depth, that are looked at.
_MOST_ELEMENTS = 20_000
# A larger array is compared by a sample of this many bytes.
_MOST_COMPARED_NBYTES = 1 << 24
_SCALARS = (type(None), bool, int, float, complex, str, bytes)
_TAG = "ckptstore.tensor"


class NotPlainError(Exception):
    """A value is no plain state: an object, a function, a symbolic tensor."""


class TooLargeError(Exception):
    """A value has more elements than can be looked at for each save."""


def to_plain(value: Any, is_tracked: Callable[[Any], bool]) -> Any:
    """Return a value as `ckptstore.keras.state.tree.pack` takes it; tensors keep the name of their backend.

    Args:
        value: The value.
        is_tracked: Returns True for variables that Keras saves with the model.

    Raises:
        NotPlainError: It is, or holds, something other than numbers, text, arrays, generators and containers of these.
        TooLargeError: It has too many elements.

    Example:
        >>> to_plain([1, (2.5, "a")], lambda variable: False)
        [1, (2.5, 'a')]
    """
    return _Plain(is_tracked).convert(value, 0)


class _Plain:
    def __init__(self, is_tracked: Callable[[Any], bool]) -> None:
        self._is_tracked = is_tracked
        self._left = _MOST_ELEMENTS

    def convert(self, value: Any, depth: int) -> Any:
        if type(value) in _SCALARS or isinstance(value, np.generic):
            return value
        self._left -= 1
        if self._left < 0 or depth > 50:
            raise TooLargeError
        if isinstance(value, list | tuple | set | frozenset | deque):
            return self._sequence(value, depth)
        if isinstance(value, dict):
            return self._mapping(value, depth)
        return self._leaf(value)

    def _sequence(self, value: Any, depth: int) -> Any:
        kind = next((kind for kind in (list, set, frozenset, deque, tuple) if isinstance(value, kind)), list)
        if kind is tuple and type(value) is not tuple:
            raise NotPlainError  # a named tuple
        if len(value) > self._left * 50:
            raise TooLargeError
        if all(type(item) in _SCALARS for item in value):
            self._left -= len(value) // 50
            items: Any = list(value)
        else:
            items = [self.convert(item, depth + 1) for item in value]
        return deque(items, value.maxlen) if kind is deque else kind(items)

    def _mapping(self, value: Any, depth: int) -> Any:
        items = {key: self.convert(item, depth + 1) for key, item in value.items()}
        if isinstance(value, defaultdict):
            return defaultdict(value.default_factory, items)
        return next((kind(items) for kind in (Counter, OrderedDict) if isinstance(value, kind)), items)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, keras.Variable) and self._is_tracked(value):
            raise NotPlainError
        try:
            state = generators.state_of(value)
            array = None if state is not None else as_numpy(value)
        except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise NotPlainError from error
        if state is not None:
            return state
        if array is None or array.dtype == object:
            raise NotPlainError
        return array if isinstance(value, np.ndarray) else {_TAG: [_backend(value), array]}


def _backend(value: Any) -> str:
    root = type(value).__module__.partition(".")[0]
    return {"torch": "torch", "tensorflow": "tensorflow", "jaxlib": "jax", "jax": "jax"}.get(root, "keras")


def digest(plain: Any) -> str | None:
    """Return a digest of what `to_plain` returned; None if it cannot be stored (a defaultdict of the user's type).

    Example:
        >>> digest([1, 2]) == digest([1, 2]), digest([1, 2]) == digest([1, 3])
        (True, False)
    """
    try:
        document, arrays = tree.pack(plain, "value")
    except InvalidArgumentError:
        return None
    found = xxhash.xxh3_128(repr(document).encode())
    for array in arrays.values():
        found.update(f"{array.dtype} {array.shape}".encode())
        step = 1 if array.nbytes <= _MOST_COMPARED_NBYTES else array.nbytes // (_MOST_COMPARED_NBYTES // 16)
        found.update(np.ascontiguousarray(array.reshape(-1)[::step]).tobytes())
    return found.hexdigest()


def put_back(live: Any, saved: Any) -> Any:
    """Give a live value its saved state; returns the live object if it could be changed in place, else a new value.

    Args:
        live: The present value.
        saved: What `to_plain` returned, perhaps through `ckptstore.keras.state.tree`.

    Raises:
        Exception: The live value does not take it.

    Example:
        >>> live = [1, 2]
        >>> put_back(live, [3]) is live, live
        (True, [3])
    """
    if isinstance(saved, GeneratorState):
        saved.apply(live)
        return live
    if isinstance(saved, dict) and _TAG in saved:
        return _tensor(live, *saved[_TAG])
    if isinstance(saved, np.ndarray):
        same = isinstance(live, np.ndarray) and live.shape == saved.shape and live.dtype == saved.dtype
        if not same or not live.flags.writeable:
            return saved.copy()
        live[...] = saved
        return live
    if isinstance(saved, dict):
        return _mapping(live, saved)
    if isinstance(saved, list | deque):
        same = isinstance(live, list | deque)
        items = _items(list(live) if same else [], saved)
        if same and not (isinstance(live, deque) and live.maxlen != getattr(saved, "maxlen", None)):
            live.clear()
            live.extend(items)
            return live
        return deque(items, saved.maxlen) if isinstance(saved, deque) else items
    if isinstance(saved, tuple):
        return tuple(_items(list(live) if isinstance(live, tuple) else [], saved))
    if isinstance(saved, set) and isinstance(live, set):
        live.clear()
        live.update(saved)
        return live
    return saved


def _items(live: list[Any], saved: Any) -> list[Any]:
    return [put_back(live[index] if index < len(live) else None, item) for index, item in enumerate(saved)]


def _mapping(live: Any, saved: Mapping[Any, Any]) -> Any:
    same = isinstance(live, dict)
    items = {key: put_back(live.get(key) if same else None, item) for key, item in saved.items()}
    if not same:
        if isinstance(saved, defaultdict):
            return defaultdict(saved.default_factory, items)
        made: Any = type(saved)
        return made(items)
    live.clear()
    live.update(items)
    return live


def _tensor(live: Any, backend: str, array: Any) -> Any:
    if hasattr(live, "assign"):
        assign_in_place(live, array)
        return live
    if backend == "torch":
        return _torch_tensor(live, array)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.constant(array)
    if backend == "jax":
        import jax

        return placed_like(live, jax.numpy.asarray(array.copy()))
    return keras.ops.convert_to_tensor(array)


def _torch_tensor(live: Any, array: Any) -> Any:
    import torch

    # numpy's bfloat16 is unknown to torch; the variables of Keras know the way.
    new = keras.ops.convert_to_tensor(array.copy()) if "torch" in sys.modules else None
    if keras.backend.backend() != "torch" or new is None:
        new = torch.from_numpy(array.copy())
    if not isinstance(live, torch.Tensor):
        return new
    with torch.no_grad():
        if live.shape == new.shape and live.dtype == new.dtype:
            live.copy_(new)
            return live
        return new.to(live.device)
