"""Tree of plain Python state as JSON and named arrays, and back bit for bit, without pickle.

In the document null, booleans, numbers, strings and lists stand for themselves; anything else is an object with one
tag: ``{"tuple": [1, 2]}``, ``{"dict": [["key", 1]]}``, ``{"array": 0}``. The number is that of the array, which is
stored as ``"<name>/0"``. Reading it runs no code and looks up no class by name.
"""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ckptstore.errors import InvalidArgumentError
from ckptstore.keras.state import array_codec, framework_values, generators
from ckptstore.keras.state.backend_arrays import as_numpy
from ckptstore.keras.state.generators import GeneratorState
from ckptstore.system.arrays import Array

# A list of numbers of this length, or as many bytes, is stored as an array and not as JSON.
_MANY = 64
# JSON readers other than Python's keep no more digits.
_LARGEST_INT = 2**53
_DEEPEST = 100

_FACTORIES: dict[str, Callable[[], Any] | None] = {
    "int": int, "float": float, "list": list, "dict": dict, "set": set, "str": str, "bool": bool, "tuple": tuple,
    "none": None,
}  # fmt: skip
_KEYS = (int, float, complex, bool, str, bytes, type(None))


def pack(value: Any, name: str, *, keep_frameworks: bool = False) -> tuple[Any, dict[str, Array]]:
    """Convert a state to a JSON document and named arrays.

    It may consist of None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict (keys of any of
    these that are hashable), deque, OrderedDict, defaultdict of a built-in type, Counter, numpy arrays and scalars.
    All of these come back as they were. Tensors and variables of a backend come back as numpy arrays. Random generators
    come back as `GeneratorState`, to be set in place. A value that is reached twice comes back as two.

    Args:
        value: The state.
        name: Name of the state; the names of its arrays begin with it.
        keep_frameworks: True to have tensors, dtypes and devices of torch, and arrays and keys of JAX, come back as
            what they were, and not as numpy arrays.

    Returns:
        A document of standard JSON, and arrays by name. The arrays may be views of the state's memory: copy them to
        keep them while training continues.

    Raises:
        InvalidArgumentError: A value in it has another type, or contains itself; the message says where.

    Example:
        >>> pack({"best": float("inf"), "order": (2, 0, 1)}, "state")
        ({'dict': [['best', {'float': 'inf'}], ['order', {'tuple': [2, 0, 1]}]]}, {})
        >>> document, arrays = pack([np.zeros(3)], "state")
        >>> document, list(arrays)
        ([{'array': 0}], ['state/0'])
    """
    packer = _Packer(name, keep_frameworks)
    return packer.document(value), packer.arrays


def unpack(document: Any, arrays: Mapping[str, Array], name: str) -> Any:
    """Restore the state that `pack` converted; arrays are writable copies.

    Args:
        document: The document, perhaps through JSON.
        arrays: The arrays, perhaps among others.
        name: The name that was given to `pack`.

    Raises:
        InvalidArgumentError: It does not come from `pack`: an array is missing, or a newer ckptstore made it.

    Example:
        >>> unpack(*pack({1: (np.float32(0.1), b"x")}, "state"), "state")
        {1: (np.float32(0.1), b'x')}
    """
    try:
        return _Unpacker(arrays, name).value(document)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InvalidArgumentError(
            argument=name,
            value=f"{type(error).__name__}: {error}",
            reason="is not a state that this ckptstore can read",
            hint="if a newer ckptstore saved it, run: pip install --upgrade ckptstore",
        ) from error


class _Packer:
    def __init__(self, name: str, keep_frameworks: bool) -> None:
        self._name = name
        self._keep_frameworks = keep_frameworks
        self._steps: list[tuple[str, Any]] = []
        self.arrays: dict[str, Array] = {}

    def document(self, value: Any) -> Any:
        plain = _PACKED.get(type(value))
        if plain is not None:
            return plain(self, value)
        if isinstance(value, np.generic):
            return self._scalar(value)
        state = value if isinstance(value, GeneratorState) else self._tried(generators.state_of, value)
        if state is not None:
            return {"generator": [state.kind, self._inside("<{}>", "state", state.state)]}
        if self._keep_frameworks:
            found = self._tried(framework_values.encode, value)
            if found is not None:
                array = None if found.array is None else self._array(found.array)
                return {found.tag: [found.facts, array]}
        array = self._tried(as_numpy, value)
        if array is None or type(array) not in (np.ndarray, np.memmap):
            raise self._refused(value, f"a value of type {_type_name(value)} cannot be kept in a checkpoint")
        return self._array(array)

    def _tried(self, convert: Callable[[Any], Any], value: Any) -> Any:
        try:
            return convert(value)
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise self._refused(value, f"its values cannot be read: {error}") from error

    def _refused(self, value: Any, reason: str) -> InvalidArgumentError:
        place = self._name + "".join(form.format(step) for form, step in self._steps)
        return InvalidArgumentError(
            argument=place,
            value=_type_name(value),
            reason=reason,
            hint="keep numbers, text, lists, dicts and arrays: give what holds it get_state() and set_state(state)",
        )

    def _inside(self, form: str, step: Any, value: Any) -> Any:
        if len(self._steps) >= _DEEPEST:
            raise self._refused(value, f"it is more than {_DEEPEST} levels deep, or contains itself")
        self._steps.append((form, step))
        document = self.document(value)
        self._steps.pop()
        return document

    # --- containers ------------------------------------------------------------------------------

    def sequence(self, values: Any) -> Any:
        """Return the document of a list; many numbers become an array."""
        if len(values) >= _MANY:
            kinds = set(map(type, values))
            if kinds == {float}:
                return {"floats": self._add(np.array(values, np.float64))}
            if kinds == {int} and min(values) >= -(2**63) and max(values) < 2**63:
                return {"ints": self._add(np.array(values, np.int64))}
        return [self._inside("[{}]", index, value) for index, value in enumerate(values)]

    def pairs(self, value: Mapping[Any, Any]) -> list[Any]:
        """Return keys and values, in order."""
        return [[self._key(key), self._inside("/{}", key, item)] for key, item in value.items()]

    def elements(self, values: set[Any] | frozenset[Any]) -> Any:
        """Return the document of a set's elements, in an order that does not depend on their hashes."""
        for value in values:
            self._check_key(value)
        if len(set(map(type, values))) == 1 and isinstance(next(iter(values)), int | str | bytes):
            return self.sequence(sorted(values))
        return sorted((self._inside("{{{}}}", "...", value) for value in values), key=json.dumps)

    def _key(self, key: Any) -> Any:
        self._check_key(key)
        return self._inside("/{}", key, key)

    def _check_key(self, key: Any) -> None:
        """Refuse a key that would not be hashable, or not equal, when it comes back."""
        if type(key) in (tuple, frozenset):
            for part in key:
                self._check_key(part)
        elif type(key) not in _KEYS and not isinstance(key, np.generic):
            raise self._refused(key, f"a key of type {_type_name(key)} cannot be kept in a checkpoint")

    def default(self, value: defaultdict[Any, Any]) -> Any:
        """Return the document of a defaultdict, with the name of the built-in type of its defaults."""
        for name, factory in _FACTORIES.items():
            if value.default_factory is factory:
                return {"defaultdict": [name, self.pairs(value)]}
        raise self._refused(
            value, "a defaultdict of other than a built-in type cannot be kept in a checkpoint"
        )

    # --- bytes -----------------------------------------------------------------------------------

    def data(self, value: bytes) -> Any:
        """Return the document of bytes."""
        if len(value) < _MANY:
            return {"bytes": b64encode(value).decode()}
        return {"data": self._add(np.frombuffer(value, np.uint8))}

    def _scalar(self, value: np.generic) -> Any:
        if isinstance(value, np.str_):
            # Not str(value), which drops NUL characters at the end.
            return {"numpy.str": self.document(str.__str__(value))}
        if isinstance(value, np.bytes_):
            return {"numpy.bytes": self.data(bytes(value))}
        found = array_codec.encode(np.asarray(value))
        if found is None:
            raise self._refused(value, "it holds Python objects")
        dtype = array_codec.dtype_to_json(value.dtype)
        return {"scalar": [dtype, b64encode(np.asarray(value).tobytes()).decode()]}

    def _array(self, array: Array) -> Any:
        found = array_codec.encode(array)
        if found is None:
            raise self._refused(array, f"arrays of dtype {array.dtype} cannot be kept in a checkpoint")
        return {"array": self._add(found[0]), **found[1]}

    def _add(self, array: Array) -> int:
        number = len(self.arrays)
        self.arrays[f"{self._name}/{number}"] = array
        return number


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _packed_text(text: str) -> Any:
    # Lone surrogates, as in the names of odd files, are not text in JSON.
    return text if _is_unicode(text) else {"str": b64encode(text.encode("utf-8", "surrogatepass")).decode()}


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


_PACKED: dict[type, Callable[[_Packer, Any], Any]] = {
    type(None): lambda _, value: value,
    bool: lambda _, value: value,
    int: lambda _, value: value if -_LARGEST_INT <= value <= _LARGEST_INT else {"int": hex(value)},
    float: lambda _, value: value if math.isfinite(value) else {"float": repr(value)},
    complex: lambda _, value: {"complex": [value.real.hex(), value.imag.hex()]},
    str: lambda _, value: _packed_text(value),
    bytes: _Packer.data,
    list: _Packer.sequence,
    tuple: lambda packer, value: {"tuple": packer.sequence(value)},
    set: lambda packer, value: {"set": packer.elements(value)},
    frozenset: lambda packer, value: {"frozenset": packer.elements(value)},
    deque: lambda packer, value: {"deque": [packer.sequence(value), value.maxlen]},
    dict: lambda packer, value: {"dict": packer.pairs(value)},
    OrderedDict: lambda packer, value: {"OrderedDict": packer.pairs(value)},
    Counter: lambda packer, value: {"Counter": packer.pairs(value)},
    defaultdict: _Packer.default,
}


class _Unpacker:
    def __init__(self, arrays: Mapping[str, Array], name: str) -> None:
        self._arrays = arrays
        self._name = name

    def value(self, document: Any) -> Any:
        if isinstance(document, list):
            return [self.value(item) for item in document]
        if not isinstance(document, dict):
            return document
        tag = next(iter(document), "")
        return _UNPACKED[tag](self, document[tag]) if tag != "array" else self._array(document)

    def array(self, number: int) -> Array:
        return self._arrays[f"{self._name}/{number}"]

    def _array(self, document: Mapping[str, Any]) -> Array:
        facts = {name: fact for name, fact in document.items() if name != "array"}
        return array_codec.decode(self.array(document["array"]), facts)

    def pairs(self, pairs: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
        return [(self.value(key), self.value(value)) for key, value in pairs]

    def framework_value(self, tag: str, parts: Any) -> Any:
        facts, array = parts
        return framework_values.decode(tag, facts, None if array is None else self._array(array))

    def scalar(self, facts: Any) -> Any:
        dtype, text = facts
        return array_codec.decode(np.frombuffer(b64decode(text), np.uint8), {"dtype": dtype, "shape": ()})[()]


def _unpacked_as(into: Callable[[Any], Any]) -> Callable[[_Unpacker, Any], Any]:
    return lambda unpacker, document: into(unpacker.value(document))


def _unpacked_framework_value(tag: str) -> Callable[[_Unpacker, Any], Any]:
    return lambda unpacker, parts: unpacker.framework_value(tag, parts)


_UNPACKED: dict[str, Callable[[_Unpacker, Any], Any]] = {
    **{tag: _unpacked_framework_value(tag) for tag in framework_values.TAGS},
    "int": lambda _, text: int(text, 16),
    "float": lambda _, text: float(text),
    "complex": lambda _, parts: complex(*map(float.fromhex, parts)),
    "str": lambda _, text: b64decode(text).decode("utf-8", "surrogatepass"),
    "bytes": lambda _, text: b64decode(text),
    "data": lambda unpacker, number: unpacker.array(number).tobytes(),
    "ints": lambda unpacker, number: unpacker.array(number).tolist(),
    "floats": lambda unpacker, number: unpacker.array(number).tolist(),
    "tuple": _unpacked_as(tuple),
    "set": _unpacked_as(set),
    "frozenset": _unpacked_as(frozenset),
    "deque": lambda unpacker, facts: deque(unpacker.value(facts[0]), facts[1]),
    "dict": lambda unpacker, pairs: dict(unpacker.pairs(pairs)),
    "OrderedDict": lambda unpacker, pairs: OrderedDict(unpacker.pairs(pairs)),
    "Counter": lambda unpacker, pairs: Counter(dict(unpacker.pairs(pairs))),
    "defaultdict": lambda unpacker, facts: defaultdict(_FACTORIES[facts[0]], unpacker.pairs(facts[1])),
    "numpy.str": _unpacked_as(np.str_),
    "numpy.bytes": _unpacked_as(np.bytes_),
    "scalar": _Unpacker.scalar,
    "generator": lambda unpacker, facts: GeneratorState(facts[0], unpacker.value(facts[1])),
}
