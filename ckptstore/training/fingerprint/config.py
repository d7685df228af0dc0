"""Turns Keras' configurations into plain values that every start of the same script gives again.

An object is ``{"class": ..., "config": {...}}``: a class of Keras' own by its name, another by its qualified name. Left
out is what a checkpoint brings back (initialisers, seeds) and what Keras counts (names such as ``dense_3``); a layer
that refers to another names its place. A name that the user chose stays.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any, TypeGuard

import numpy as np

from ckptstore.records import json_number

# Longer values are replaced by a digest: vocabularies, tables.
_LONG = 1000
_COUNTED = re.compile(r"_\d+$")
# Wrappers name what they wrap after it; older Keras calls inputs so.
_DERIVED = re.compile(r"^(forward|backward)_")
_ANY_CLASS = frozenset({"kerastensor"})
_LEFT_OUT = frozenset({"seed", "build_config", "build_input_shape", "compile_config", "registered_name"})


def described(obj: Any, *, run_time: Iterable[str] = ()) -> dict[str, Any]:
    """Return an object's class and, if it has one, its configuration.

    Args:
        obj: Something of Keras' with a ``get_config``, or anything else.
        run_time: Keys, of it and of the objects in it, whose values change in training where they are numbers.
    """
    kind = qualified(type(obj))
    try:
        config = obj.get_config()
    except Exception:
        # Any error of a user's own code: such an object is represented by its class.
        return {"class": kind}
    if not isinstance(config, Mapping):
        return {"class": kind}
    return {"class": kind, "config": _config(kind, config, {}, frozenset(run_time))}


def qualified(named: Any) -> str:
    """Return the name of a class or function: alone for one of Keras' own, else with its module.

    Example:
        >>> import keras
        >>> qualified(keras.layers.Dense), qualified(math.sqrt)
        ('Dense', 'math.sqrt')
    """
    name = getattr(named, "__qualname__", None) or type(named).__qualname__
    return _with_module(getattr(named, "__module__", None), str(name))


def plain(value: Any, *, run_time: Iterable[str] = ()) -> Any:
    """Return a value of a configuration as JSON can hold it, the same in every process."""
    return _plain(value, {}, frozenset(run_time))


def is_counted(name: object, kind: str) -> bool:
    """Return True if a name is one that Keras makes up for an object of a class.

    Example:
        >>> is_counted("conv2d_3", "Conv2D"), is_counted("forward_lstm", "LSTM"), is_counted("stem", "Conv2D")
        (True, True, False)
    """
    if not isinstance(name, str):
        return False
    known = {re.sub(r"\W|_", "", kind.rpartition(".")[2]).lower()} | _ANY_CLASS
    stems = {stem for base in (name, _DERIVED.sub("", name)) for stem in (base, _COUNTED.sub("", base))}
    return any(stem.replace("_", "").lower() in known for stem in stems)


def without_counts(path: str) -> str:
    """Return a variable's path without the numbers that Keras counts, and without the model's own name.

    Example:
        >>> without_counts("functional_2/dense_11/kernel")
        'dense/kernel'
    """
    parts = [_COUNTED.sub("", part) for part in path.split("/")]
    return "/".join(parts[1:] or parts)


def _with_module(module: str | None, name: str) -> str:
    if not module or module.partition(".")[0] in ("keras", "builtins"):
        return name
    # A script is __main__, and something else in the processes that it starts.
    return f"{'__main__' if module == '__mp_main__' else module}.{name}"


def _config(
    kind: str, config: Mapping[str, Any], places: Mapping[str, str], run_time: frozenset[str]
) -> dict[str, Any]:
    layers = config.get("layers", ())
    if _is_of_layers(layers):
        places = {str(layer.get("name")): f"layers[{at}]" for at, layer in enumerate(layers)}
    kept: dict[str, Any] = {}
    for key, value in zip(map(str, config), config.values(), strict=True):
        if key in _LEFT_OUT or _is_initializer(key, value):
            continue
        if key == "name" and is_counted(value, kind):
            continue
        is_rate = key in run_time and isinstance(value, int | float)
        kept[key] = "a number" if is_rate else _plain(value, places, run_time)
        if key == "batch_shape" and kept[key] and isinstance(kept[key], list):
            kept[key][0] = None  # the size of the first batch, where a model was built on data
    if kind == "Sequential" and kept.get("layers") and kept["layers"][0].get("class") == "InputLayer":
        kept = {"input": kept["layers"].pop(0), **kept}  # so that layers count as the model's do
    return kept


def _is_of_layers(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and all(
        isinstance(item, Mapping) and "class_name" in item for item in value
    )


def _is_initializer(key: str, value: Any) -> bool:
    if key == "initializer" or key.endswith("_initializer"):
        return True
    return isinstance(value, Mapping) and value.get("module") == "keras.initializers"


def _plain(value: Any, places: Mapping[str, str], run_time: frozenset[str]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return _short(value)
    if isinstance(value, float):
        return json_number(value) if not math.isfinite(value) else value
    if isinstance(value, np.generic):
        return _plain(value.item(), places, run_time)
    if isinstance(value, np.ndarray):
        return _short(_plain(value.tolist(), places, run_time))
    if isinstance(value, Mapping):
        return _object(value, places, run_time)
    if isinstance(value, list | tuple):
        if _is_reference(value, places):
            return _reference(value, places)
        return _short([_plain(item, places, run_time) for item in value])
    if isinstance(value, set | frozenset):
        return _short(sorted((_plain(item, places, run_time) for item in value), key=repr))
    if isinstance(value, FunctionType | type) or not hasattr(value, "get_config"):
        return qualified(value) if callable(value) else qualified(type(value))
    return described(value, run_time=run_time)


def _object(value: Mapping[Any, Any], places: Mapping[str, str], run_time: frozenset[str]) -> Any:
    """Return what Keras serialised: a tensor, a function, an object with its configuration; or a plain mapping."""
    name, config = value.get("class_name"), value.get("config")
    if not isinstance(name, str) or "config" not in value:
        return {str(key): _plain(inner, places, run_time) for key, inner in value.items()}
    if name == "__keras_tensor__" and isinstance(config, Mapping):
        return _plain(config.get("keras_history"), places, run_time)
    if name == "__lambda__":
        return "<lambda>"
    if name == "function":
        return _with_module(value.get("module"), str(config))
    kind = _with_module(value.get("module"), name)
    if not isinstance(config, Mapping):
        return {"class": kind, "config": _plain(config, places, run_time)}
    found: dict[str, Any] = {"class": kind, "config": _config(kind, config, places, run_time)}
    calls = [_call(node, places, run_time) for node in value.get("inbound_nodes") or ()]
    return {**found, "inputs": calls} if calls else found


def _call(node: Any, places: Mapping[str, str], run_time: frozenset[str]) -> Any:
    if not isinstance(node, Mapping):
        return _plain(node, places, run_time)
    arguments = {key: _plain(value, places, run_time) for key, value in node.get("kwargs", {}).items()}
    return {"args": _plain(node.get("args"), places, run_time), **arguments}


def _is_reference(value: Sequence[Any], places: Mapping[str, str]) -> bool:
    return (
        len(value) == 3
        and isinstance(value[0], str)
        and value[0] in places
        and all(type(number) is int for number in value[1:])
    )


def _reference(value: Sequence[Any], places: Mapping[str, str]) -> str:
    name, call, output = value
    found = places[name]
    found += f" call {call}" if call else ""
    return found + (f" output {output}" if output else "")


def _short(value: Any) -> Any:
    text = json.dumps(value) if isinstance(value, list | str) else ""
    if len(text) <= _LONG or (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
        return value
    return f"{len(value)} values, sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
