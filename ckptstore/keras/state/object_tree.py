"""Tree of values without methods to save it: flattened for a save, and filled in on the live tree's structure.

Containers are dicts, lists, tuples, named tuples (optax' states) and whatever JAX knows as a container. They are never
saved: a live tree of the same structure gives them back. So no class is looked up by name. What can be changed in place
(tensors of torch, numpy arrays, variables, random generators, lists and dicts) is; the rest is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckptstore.errors import InvalidArgumentError, ObjectsMismatchError
from ckptstore.keras.state import generators
from ckptstore.keras.state.assigning import assign_in_place
from ckptstore.keras.state.backend_arrays import as_numpy
from ckptstore.keras.state.framework_values import is_key, tensor_of
from ckptstore.keras.state.generators import GeneratorState
from ckptstore.keras.state.shards import placed_like
from ckptstore.system.arrays import Array

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
NOTHING = "nothing"
_DEEPEST = 100


@dataclass(frozen=True, slots=True)
class _Node:
    """A container, taken apart.

    Attributes:
        kind: Its type's name.
        children: Its items, each with its step in a path.
        rebuilt: Makes the container again from other items, in place where it can.
    """

    kind: str
    children: list[tuple[str, Any]]
    rebuilt: Callable[[list[Any]], Any]


def flatten(tree: Any, name: str = "objects") -> dict[str, Any]:
    """Return the state of a tree: its containers and its leaves, each with its path.

    Args:
        tree: The live tree.
        name: Its name, for errors.

    Raises:
        InvalidArgumentError: It contains itself, or two of its values have one path (two NaN keys of a dict).

    Example:
        >>> flatten({"mu": (1.0, None)})
        {'nodes': [['', 'dict'], ["['mu']", 'tuple']], 'leaves': [["['mu'][0]", 1.0], ["['mu'][1]", None]]}
    """
    nodes: list[list[str]] = []
    leaves: list[list[Any]] = []
    seen: set[str] = set()
    for path, value, node in _walk(tree, "", name):
        if path in seen:
            raise InvalidArgumentError(
                argument=f"{name}{path}",
                value=_type_name(value),
                reason="is the place of two values: their keys look alike",
            )
        seen.add(path)
        (leaves.append([path, value]) if node is None else nodes.append([path, node.kind]))
    return {"nodes": nodes, "leaves": leaves}


def check(name: str, tree: Any, saved: Mapping[str, Any], *, hint: str = "") -> None:
    """Check that a live tree has the structure of a saved one.

    Args:
        name: The tree's name.
        tree: The live tree.
        saved: What `flatten` returned, perhaps in another process.
        hint: What to do where it differs.

    Raises:
        ObjectsMismatchError: It does not; names the first difference.
    """
    live = flatten(tree, name)
    for kind in ("nodes", "leaves"):
        there = {f"{name}{path}": value for path, value in saved[kind]}
        here = {f"{name}{path}": value for path, value in live[kind]}
        if kind == "leaves":
            here |= {
                path: there[path] for path in here if path in there and _replaces(there[path], here[path])
            }
        refuse_difference(_texts(there, kind), _texts(here, kind), hint=hint)


def refuse_difference(
    in_checkpoint: Mapping[str, str], in_objects: Mapping[str, str], *, hint: str = ""
) -> None:
    """Compare descriptions by place.

    Raises:
        ObjectsMismatchError: They differ; names the first difference.
    """
    for place in [*in_checkpoint, *in_objects]:
        there, here = in_checkpoint.get(place, NOTHING), in_objects.get(place, NOTHING)
        if there != here:
            raise ObjectsMismatchError(where=place, in_checkpoint=there, in_objects=here, hint=hint)


def filled(tree: Any, saved: Mapping[str, Any]) -> Any:
    """Return a live tree with the leaves of a saved one, after `check`; changed in place as far as possible."""
    leaves = dict(saved["leaves"])
    return _filled(tree, leaves, "")


def _filled(tree: Any, leaves: dict[str, Any], path: str) -> Any:
    node = _node(tree)
    if node is None:
        return _leaf(tree, leaves[path])
    return node.rebuilt([_filled(child, leaves, path + step) for step, child in node.children])


def _walk(tree: Any, path: str, name: str, depth: int = 0) -> Iterator[tuple[str, Any, _Node | None]]:
    if depth > _DEEPEST:
        raise InvalidArgumentError(
            argument=name,
            value=_type_name(tree),
            reason=f"is more than {_DEEPEST} levels deep, or contains itself",
        )
    node = _node(tree)
    yield path, tree, node
    if node is not None:
        for step, child in node.children:
            yield from _walk(child, path + step, name, depth + 1)


def _type_name(value: Any) -> str:
    return type(value).__name__


# --- containers ----------------------------------------------------------------------------------


def _node(value: Any) -> _Node | None:
    """Take a container apart; None for a leaf. A list of plain values may grow, and is a leaf."""
    kind = type(value)
    if isinstance(value, dict):
        return _Node(kind.__name__, [(f"[{key!r}]", item) for key, item in value.items()], _put(value))
    if isinstance(value, list):
        if value and not all(isinstance(item, _PLAIN) for item in value):
            return _Node(
                kind.__name__, [(f"[{index}]", item) for index, item in enumerate(value)], _put(value)
            )
        return None
    if isinstance(value, tuple):
        if not hasattr(value, "_asdict"):
            return _Node("tuple", [(f"[{index}]", item) for index, item in enumerate(value)], tuple)
        fields = value._asdict().items()
        return _Node(
            kind.__name__, [(f".{field}", item) for field, item in fields], lambda items: kind(*items)
        )
    return None if isinstance(value, _PLAIN) else _foreign_node(value)


def _put(container: Any) -> Callable[[list[Any]], Any]:
    def rebuilt(items: list[Any]) -> Any:
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key, item in zip(keys, items, strict=True):
            container[key] = item
        return container

    return rebuilt


def _foreign_node(value: Any) -> _Node | None:
    """Take apart what JAX was told to be a container, such as a state of flax."""
    jax: Any = sys.modules.get("jax")
    if jax is None or not hasattr(jax, "tree_util"):
        return None
    children, structure = jax.tree_util.tree_flatten_with_path(
        value, is_leaf=lambda other: other is not value
    )
    if jax.tree_util.treedef_is_leaf(structure):
        return None
    return _Node(
        type(value).__name__,
        [(jax.tree_util.keystr(path), child) for path, child in children],
        structure.unflatten,
    )


# --- leaves --------------------------------------------------------------------------------------


def _array(value: Any) -> Array | None:
    if isinstance(value, np.generic) or is_key(value):
        return None
    return as_numpy(value)


def _texts(values: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Return what is compared of containers or of leaves, and shown where it differs."""
    return {path: str(value) if kind == "nodes" else _text(value) for path, value in values.items()}


def _text(value: Any) -> str:
    if isinstance(value, (*_PLAIN, np.generic, list)):
        return "a plain value"
    if isinstance(value, GeneratorState):
        return f"a generator {value.kind}"
    generator = generators.kind_of(value)
    if generator is not None:
        return f"a generator {generator}"
    if is_key(value):
        import jax

        return f"{tuple(value.shape)} key {jax.random.key_impl(value)}"
    array = _array(value)
    return type(value).__name__ if array is None else f"{array.shape} {array.dtype.name}"


def _replaces(saved: Any, live: Any) -> bool:
    """Return True if a saved value may take the place of the live one, though their types differ.

    The first step makes an array of JAX from a Python number, and of optax' moments sometimes another dtype.
    """
    return _shape(saved) is not None and _shape(saved) == _shape(live)


def _shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a number or of an array of JAX, which cannot be changed in place; None for anything else."""
    if isinstance(value, bool | int | float):
        return ()
    is_array = hasattr(value, "weak_type") and not is_key(value)
    return tuple(value.shape) if is_array else None


def _leaf(live: Any, saved: Any) -> Any:
    """Return the live leaf with the saved value, or the saved value where the live one cannot be changed in place."""
    if isinstance(saved, GeneratorState):
        saved.apply(live)
        return live
    if isinstance(live, list):
        live[:] = saved
        return live
    if isinstance(live, np.ndarray) and live.flags.writeable:
        live[...] = as_numpy(saved)
        return live
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(live, torch.Tensor):
        with torch.no_grad():
            live.copy_(saved if isinstance(saved, torch.Tensor) else tensor_of(np.array(as_numpy(saved))))
        return live
    if hasattr(live, "assign"):
        assign_in_place(live, as_numpy(saved))
        return live
    return placed_like(live, saved)
