"""Walk through what the user's own code keeps on a model, its layers, optimizers, losses and metrics, by path.

The walk follows attributes of the user's own objects, lists and dicts of them, and what functions of theirs enclose. It
looks into no library's objects but generators, and those with ``state_dict`` and ``load_state_dict``.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras

from ckptstore.keras import private
from ckptstore.keras.state.user_state_values import NotPlainError, TooLargeError, put_back, to_plain

# Objects that one walk looks at.
_MOST_OBJECTS = 10_000
_STATE_DICT = "state_dict()"
_STATE_DICT_METHODS = ("state_dict", "load_state_dict")
_STDLIB = frozenset(sys.stdlib_module_names) | {"builtins", "ckptstore"}
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place where the user's code keeps a value.

    Attributes:
        owner_path: The path of the object that holds it.
        owner: That object: any object, a list, a dict, or the cell of a function.
        key: The name of the attribute, or the index or key.
        value: The live value.
        plain: The same as plain state; None if there is none.
        reason: Why there is none; empty if it was not to be expected (functions, symbolic tensors).
    """

    owner_path: str
    owner: Any
    key: Any
    value: Any
    plain: Any = None
    reason: str | None = None

    @property
    def path(self) -> str:
        """The path of the value, as a message names it."""
        if isinstance(self.owner, types.CellType):
            return self.owner_path
        if isinstance(self.owner, list | dict):
            return f"{self.owner_path}[{self.key!r}]"
        return f"{self.owner_path}.{self.key}"

    def set(self, saved: Any) -> None:
        """Restore the value from plain state."""
        set_value(self.owner, self.key, self.value, saved)


def set_value(owner: Any, key: Any, live: Any, saved: Any) -> None:
    """Put a saved value at a place of an owner."""
    if key == _STATE_DICT:
        owner.load_state_dict(put_back(None, saved))
        return
    new = put_back(live, saved)
    if new is live:
        return
    if isinstance(owner, types.CellType):
        owner.cell_contents = new
    elif isinstance(owner, list | dict):
        owner[key] = new
    else:
        setattr(owner, key, new)


def roots(model: Any) -> list[tuple[str, Any]]:
    """Return the objects to begin at, with their paths: those that can hold something of the user's."""
    found = []
    for index, layer in enumerate(private.layers_of(model)):
        if not index or not private.is_keras_class(type(layer)) or private.user_attributes(layer):
            name = type(layer).__name__
            found.append((name if not index else f"{name}[{index}]", layer))
    for index, optimizer in enumerate(private.optimizers_of(model)):
        found.append((f"optimizer[{index}]", optimizer))
        schedule = private.schedule_of(optimizer)
        if schedule is not None:
            found.append((f"optimizer[{index}].learning_rate", schedule))
    found.append(("loss", getattr(model, "loss", None)))
    metrics = [metric for outer in model.metrics for metric in (outer, *getattr(outer, "metrics", ()))]
    found += [(f"metrics[{index}]", metric) for index, metric in enumerate(metrics)]
    return [(path, value) for path, value in found if value is not None and not isinstance(value, str)]


def places(model: Any, roots: list[tuple[str, Any]]) -> Iterator[Place]:
    """Yield all places of a model that are reached from `roots`, in a stable order."""
    walk = _Walk(model, roots)
    for path, value in roots:
        yield from walk.root(path, value)


class _Walk:
    def __init__(self, model: Any, roots: list[tuple[str, Any]]) -> None:
        self._model = model
        self._roots = {id(value) for _, value in roots}
        # Kept alive, so that no other object has one of the ids.
        self._seen: dict[int, Any] = {}

    def root(self, path: str, value: Any) -> Iterator[Place]:
        if isinstance(value, list | tuple | dict) or not (private.is_keras_object(value) or _is_users(value)):
            yield from self._inside(path, value)
        else:
            yield from self._object(path, value)

    def _object(self, path: str, value: Any) -> Iterator[Place]:
        # Keras' own objects hold nothing of the user's, or are among the roots.
        if private.is_keras_class(type(value)) and id(value) not in self._roots:
            return
        if not self._is_new(value):
            return
        attributes = private.user_attributes(value) if private.is_keras_object(value) else _attributes(value)
        for name, item in attributes.items():
            yield from self._value(path, value, name, item)

    def _is_new(self, value: Any) -> bool:
        if id(value) in self._seen or len(self._seen) >= _MOST_OBJECTS:
            return False
        self._seen[id(value)] = value
        return True

    def _value(self, owner_path: str, owner: Any, key: Any, value: Any) -> Iterator[Place]:
        place = functools.partial(Place, owner_path=owner_path, owner=owner, key=key, value=value)
        try:
            yield place(plain=to_plain(value, self._is_tracked))
            return
        except TooLargeError:
            yield place(reason="it has too many elements")
            return
        except RuntimeError as error:  # a thread adds to a dict
            yield place(reason=str(error))
            return
        except NotPlainError:
            path = place().path
        if isinstance(value, keras.Variable | type | types.ModuleType):
            return
        if _is_tensorflow_generator(value):
            yield from self._value(path, value, "state", value.state)
        elif isinstance(value, list | tuple | dict | set):  # Keras has lists and dicts of its own
            yield from self._inside(path, value)
        elif private.is_keras_object(value) or _is_users(value):
            yield from self._object(path, value)
        elif _has(value, _STATE_DICT_METHODS):
            try:
                state = value.state_dict()
            except Exception as error:
                yield place(reason=f"its state_dict() raises {type(error).__name__}: {error}")
                return
            yield from self._value(path, value, _STATE_DICT, state)
        elif callable(value):
            yield from self._inside(path, value)
        elif not _has(value, ("shape",)):  # a symbolic tensor is left behind by a trace
            yield place(reason=f"a value of type {type(value).__name__} cannot be saved")

    def _inside(self, path: str, value: Any) -> Iterator[Place]:
        if not self._is_new(value):
            return
        if isinstance(value, dict):
            for key, item in value.items():
                yield from self._value(path, value, key, item)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from self._value(path, value, index, item)
        elif isinstance(value, functools.partial):
            for index, item in enumerate((value.func, *value.args, *value.keywords.values())):
                yield from self._enclosed(f"{path}({index})", item)
        elif isinstance(value, types.MethodType):
            yield from self._enclosed(path, value.__self__)
            yield from self._enclosed(path, value.__func__)
        elif isinstance(value, types.FunctionType) and not _is_of_library(value.__module__):
            for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
                yield from self._cell(f"{path}:{name}", cell)

    def _enclosed(self, path: str, value: Any) -> Iterator[Place]:
        # What cannot be set in its owner can still be changed in place.
        if private.is_keras_object(value) or _is_users(value):
            yield from self._object(path, value)
        elif isinstance(value, list | dict | types.FunctionType | types.MethodType | functools.partial):
            yield from self._value(path, types.SimpleNamespace(), "value", value)

    def _cell(self, path: str, cell: types.CellType) -> Iterator[Place]:
        try:
            value = cell.cell_contents
        except ValueError:
            return  # empty
        if self._is_new(cell):
            yield from self._value(path, cell, "", value)

    @functools.cached_property
    def _tracked(self) -> frozenset[int]:
        """The ids of the variables that are saved with the model in any case."""
        optimizers = private.optimizers_of(self._model)
        slots = [variable for optimizer in optimizers for variable in optimizer.variables]
        return frozenset(map(id, (*self._model.variables, *self._model.metrics_variables, *slots)))

    def _is_tracked(self, variable: Any) -> bool:
        return id(variable) in self._tracked


def _attributes(value: Any) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return dict(sorted(found.items()))


def _is_users(value: Any) -> bool:
    """Return True for an instance of a class that is neither of the standard library nor of an installed package."""
    kind = type(value)
    if callable(value) and isinstance(value, type | types.FunctionType | types.MethodType):
        return False
    return not _is_of_library(kind.__module__)


@functools.cache
def _is_of_library(module: str | None) -> bool:
    root = (module or "builtins").partition(".")[0]
    if root in _STDLIB:
        return root != "__main__"
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is not None and file.startswith(_LIBRARIES)


def _is_tensorflow_generator(value: Any) -> bool:
    tensorflow: Any = sys.modules.get("tensorflow")
    kind = getattr(getattr(tensorflow, "random", None), "Generator", None)
    return isinstance(kind, type) and isinstance(value, kind)


def _has(value: Any, names: Iterable[str]) -> bool:
    """Return True if an object has all of some attributes; looking for them may run code that raises anything."""
    try:
        return all(hasattr(value, name) for name in names)
    except Exception:
        return False
