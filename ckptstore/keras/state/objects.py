"""Objects saved with a model (``objects=``): optimizers, schedulers, scalers, loaders, generators, trees of arrays.

What an object can do decides how it is saved: a random generator by its state; what Keras made by its variables; what
has ``state_dict`` and ``load_state_dict``, or ``get_state`` and ``set_state``, by these; any other as a tree of values.
There is no pickle: the state becomes JSON and arrays in the training state. A resume checks all before it changes one,
and puts all back if one fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import keras

from ckptstore.errors import InvalidArgumentError, RefusedByObjectError
from ckptstore.formats.snapshot import TrainingState
from ckptstore.keras.state import generators, object_tree, random_state, torch_zero, tree
from ckptstore.system.arrays import Array

GROUP = "objects"
Objects = Mapping[str, Any]

_METHODS = {"state_dict": "load_state_dict", "get_state": "set_state"}
_VARIABLES, _GENERATOR, _TREE = "variables", "generator", "tree"
# Marks an object whose state process 0 has.
_OF_FIRST = "of_process_0"
_PASS_THEM = (
    "pass objects={...} with all of these names; restore(ref, model) without objects= loads the model alone"
)
_BUILD = (
    "nothing was changed; build it first: optimizer.build(model.trainable_variables), or call the layer once"
)


def collect(objects: Objects, *, replica: bool = False) -> tuple[Any, dict[str, Array]]:
    """Return the state of all objects as JSON and named arrays, which may be views of live memory.

    Args:
        objects: The objects.
        replica: True in a process that trains a replica of process 0's model: what is equal there by construction, an
            optimizer and what goes with it, is only named here, since process 0 has it.

    Raises:
        InvalidArgumentError: A value in it cannot be kept; the message says where.
    """
    states = {
        name: _named(name, value) if replica and _follows_gradients(value) else _captured(name, value)
        for name, value in objects.items()
    }
    return tree.pack(states, GROUP, keep_frameworks=True)


class ObjectsPlan:
    """The states of a checkpoint for live objects, checked and not yet loaded; nothing is changed by making one.

    Args:
        objects: The live objects; None for no objects. Trees in it that cannot be changed in place are replaced.
        state: The training state.
        must_name_all: True to refuse a checkpoint that has objects where none are given.
        of_first: Returns the training state of process 0, for what `state` only names.

    Raises:
        ObjectsMismatchError: The checkpoint has other objects, or objects of another structure.
        InvalidArgumentError: The mapping would have to be changed, and cannot be.
    """

    def __init__(
        self,
        objects: Objects | None,
        state: TrainingState | None,
        *,
        must_name_all: bool,
        of_first: Callable[[], TrainingState | None] = lambda: None,
    ) -> None:
        self._objects = objects or {}
        self._saved = _saved_states(state, of_first) if objects is not None or must_name_all else {}
        self._before: dict[str, Any] = {}
        self._touched: list[str] = []
        self._replaced: dict[str, Any] = {}
        _check_names(self._objects, self._saved)
        for name, value in self._objects.items():
            _check(name, value, self._saved[name])
        _check_replaceable(self._objects)

    @contextmanager
    def loaded(self, *, keep_on_interrupt: bool) -> Iterator[None]:
        """Load all objects, then run the block that loads the model; if either fails, all objects are put back.

        Args:
            keep_on_interrupt: True where an interrupt leaves the model as it was saved: objects stay so, too.

        Raises:
            RefusedByObjectError: An object could not load its state; all are as they were.
        """
        self._keep_present_states()
        self._load_all()
        try:
            yield
        except BaseException as error:
            if isinstance(error, Exception) or not keep_on_interrupt:
                self._put_back(error)
            raise
        if isinstance(self._objects, MutableMapping):
            self._objects.update(self._replaced)

    def _keep_present_states(self) -> None:
        # A loader that has not begun makes its iterator to tell its state, which draws random numbers.
        drawn_from = random_state.capture() if self._objects else None
        for name, value in self._objects.items():
            document, arrays = tree.pack(_captured(name, value), name, keep_frameworks=True)
            self._before[name] = tree.unpack(document, arrays, name)
        if drawn_from is not None:
            random_state.restore(drawn_from)

    def _load_all(self) -> None:
        name = ""
        # Generators last: whatever draws from them while it is loaded has done so.
        by_kind = sorted(self._objects, key=lambda name: self._saved[name]["kind"] == _GENERATOR)
        try:
            for name in by_kind:
                self._touched.append(name)
                self._replaced[name] = _load(self._objects[name], self._saved[name])
        except Exception as error:
            text = " ".join(str(error).split())
            refused = RefusedByObjectError(where=name, reason=f"{type(error).__name__}: {text}")
            self._put_back(refused)
            raise refused from error
        except BaseException as error:
            self._put_back(error)
            raise

    def _put_back(self, error: BaseException) -> None:
        for name in self._touched:
            try:
                _load(self._objects[name], self._before[name])
            except Exception as failure:
                error.add_note(f"{name} could not be put back: {type(failure).__name__}: {failure}")


# --- checks --------------------------------------------------------------------------------------


def _saved_states(
    state: TrainingState | None, of_first: Callable[[], TrainingState | None] = lambda: None
) -> dict[str, Any]:
    if state is None or GROUP not in state.document:
        return {}
    states: dict[str, Any] = tree.unpack(state.document[GROUP], state.arrays, GROUP)
    named = [name for name, captured in states.items() if _OF_FIRST in captured]
    if named:
        first = _saved_states(of_first())
        states |= {name: first[name] for name in named}
    return states


def _check_names(objects: Objects, saved: Mapping[str, Any]) -> None:
    object_tree.refuse_difference(
        {name: _type_text(captured) for name, captured in saved.items()},
        {name: _type_text(_type_of(value)) for name, value in objects.items()},
        hint=_PASS_THEM if set(saved) != set(objects) else "",
    )


def _check(name: str, value: Any, saved: Mapping[str, Any]) -> None:
    if saved["kind"] in (_TREE, _VARIABLES):
        hint = _BUILD if saved["kind"] == _VARIABLES else ""
        object_tree.check(name, _tree_of(value), saved["state"], hint=hint)
    object_tree.refuse_difference(saved.get("parameters", {}), _parameters(name, value))


def _check_replaceable(objects: Objects) -> None:
    if isinstance(objects, MutableMapping):
        return
    for name, value in objects.items():
        if _kind(value) == _TREE:
            raise InvalidArgumentError(
                argument="objects",
                value=type(objects).__name__,
                reason=f"must be a dict: the restored {name} is put into it",
            )


# --- one object ----------------------------------------------------------------------------------


def _kind(value: Any) -> str:
    """Return how an object is saved: the name of its method, or one of the other three ways."""
    if isinstance(value, keras.Layer | keras.optimizers.Optimizer | keras.metrics.Metric):
        return _VARIABLES
    if generators.kind_of(value) is not None:
        return _GENERATOR
    for getter, setter in _METHODS.items():
        if callable(getattr(value, getter, None)) and callable(getattr(value, setter, None)):
            return getter
    return _TREE


def _type_of(value: Any) -> dict[str, Any]:
    """Return how an object is saved and what it is, without its state."""
    kind = _kind(value)
    if kind == _TREE:
        return {"kind": kind}
    return {"kind": kind, "type": generators.kind_of(value) or type(value).__qualname__}


def _type_text(captured: Mapping[str, Any]) -> str:
    kind = captured["kind"]
    return "a tree of values" if kind == _TREE else f"{captured['type']} (by its {kind})"


def _follows_gradients(value: Any) -> bool:
    """True for what changes by gradients and losses alone, which replicas add up: it is equal on all of them."""
    if isinstance(value, keras.optimizers.Optimizer):
        return True
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return False
    from torch.amp.grad_scaler import GradScaler
    from torch.optim.lr_scheduler import LRScheduler

    return not torch_zero.is_divided(value) and isinstance(
        value, torch.optim.Optimizer | LRScheduler | GradScaler
    )


def _named(name: str, value: Any) -> dict[str, Any]:
    return {**_type_of(value), _OF_FIRST: True}


def _captured(name: str, value: Any) -> dict[str, Any]:
    captured = _type_of(value)
    kind = captured["kind"]
    if kind in (_TREE, _VARIABLES):
        captured["state"] = object_tree.flatten(_tree_of(value), f"objects[{name!r}]")
    elif kind == _GENERATOR:
        captured["state"] = generators.state_of(value)
    elif torch_zero.is_divided(value):
        captured["state"] = torch_zero.state_of(value)
    else:
        captured["state"] = getattr(value, kind)()
    parameters = _parameters(name, value)
    return {**captured, "parameters": parameters} if parameters else captured


def _load(value: Any, captured: Mapping[str, Any]) -> Any:
    """Load a state into an object; return the object, or the tree that replaces it."""
    kind, state = captured["kind"], captured["state"]
    if kind in (_TREE, _VARIABLES):
        filled = object_tree.filled(_tree_of(value), state)
        return filled if kind == _TREE else value
    if kind == _GENERATOR:
        state.apply(value)
    elif torch_zero.is_divided(value):
        torch_zero.load(value, state)
    else:
        getattr(value, _METHODS[kind])(state)
        if isinstance(value, Iterable):
            # A loader of torch draws random numbers for its iterator, which it makes now and not with the next batch.
            getattr(value, kind)()
    return value


def _tree_of(value: Any) -> Any:
    return list(value.variables) if _kind(value) == _VARIABLES else value


def _parameters(name: str, value: Any) -> dict[str, str]:
    """Return shape and dtype of each parameter of an optimizer of torch, which itself compares only their number."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.optim.Optimizer):
        return {}
    held = torch_zero.held_by(value)
    return {
        f"{name}.param_groups[{group}]['params'][{index}]": f"{tuple(parameter.shape)} {parameter.dtype}"
        for group, settings in enumerate(value.param_groups)
        for index, parameter in enumerate(settings["params"])
        if id(parameter) in held
    }
