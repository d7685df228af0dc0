"""Optimizers that are built, or are not, as they were when they were saved.

Keras builds an optimizer, that is, makes its slots, with its first step. One that nobody steps is never built: a save
leaves it so, its payload has no slots, and a restore leaves it so, too. If the live one has been built since, a restore
gives its slots the values that they begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras

from ckptstore.formats.payload_format import OpenPayload
from ckptstore.formats.snapshot import TrainingState
from ckptstore.keras import private
from ckptstore.keras.model import legacy_h5
from ckptstore.keras.state import optimizers as keras_optimizers
from ckptstore.keras.state import training_state
from ckptstore.keras.state.arrays import host_array, shape_and_dtype
from ckptstore.keras.state.assigning import assign
from ckptstore.keras.state.training_state import Assignment
from ckptstore.system.arrays import Array

_VARIABLES = "optimizer/vars/"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedOptimizer:
    """The variables in a payload of the optimizer that a model is compiled with, or that a loop passes.

    Attributes:
        count: Their number.
        value: Returns one of them.
        is_built: True if it was built, None if the payload does not tell.
        in_scope: True if it built the optimizer that it wraps in its own name scope.
    """

    count: int
    value: Callable[[int], Array]
    is_built: bool | None = None
    in_scope: bool = False

    def is_unbuilt(self, unbuilt: Any) -> bool:
        """Return True if it was saved before it was built, judged by one of its kind that is not built."""
        variables = unbuilt.variables
        if self.is_built or self.count != len(variables):
            return False
        if self.is_built is None:
            # A kind without slots has the same variables once it is built; then it has counted its steps.
            counters = [index for index, variable in enumerate(variables) if "int" in str(variable.dtype)]
            return not any(self.value(index).any() for index in counters)
        return True


def optimizer_in(found: OpenPayload, model: Any, extra: Any, state: TrainingState | None) -> SavedOptimizer:
    """Return the optimizer in a payload.

    Args:
        found: The payload.
        model: The live model.
        extra: The live optimizer, if the model does not know it.
        state: The training state in the payload.
    """
    how = training_state.how_built(state)
    live = id(_main_optimizer(model, extra))
    trained = dict(zip(map(id, private.optimizers_of(model)), how.trained, strict=False))
    is_built = bool(trained[live]) if live in trained else None
    in_scope = _scopes(model, extra, state).get(live, False)
    if found.format.matches_by_order:
        with found.hdf5() as file:
            count = sum(path.startswith(legacy_h5.OPTIMIZER) for path, _ in legacy_h5.arrays(file))
        value = partial(_legacy_value, found)
    else:
        count = sum(path.startswith(_VARIABLES) for path in found.layout())
        value = partial(_value, found)
    return SavedOptimizer(count=count, value=value, is_built=is_built, in_scope=in_scope)


def build_optimizers(model: Any, extra: Any, saved: SavedOptimizer, state: TrainingState | None) -> None:
    """Build the live optimizers that were built when they were saved; the others stay as they are."""
    trained = training_state.how_built(state).trained
    keras_optimizers.build_optimizers(model, trained, _scopes(model, extra, state))
    optimizer = _main_optimizer(model, extra)
    if optimizer is None or optimizer.built or not saved.count or saved.is_unbuilt(optimizer):
        return
    private.build_optimizer(optimizer, model.trainable_variables, in_scope=saved.in_scope)


def initial_assignments(model: Any, extra: Any, saved: SavedOptimizer) -> list[Assignment]:
    """Return what makes a built optimizer as new, with what was saved of it before it was built.

    Empty if it was saved built, or is not built now: then its variables are loaded as all others.
    """
    optimizer = _main_optimizer(model, extra)
    if optimizer is None or saved.is_built or not 0 < saved.count < len(optimizer.variables):
        return []
    try:
        with private.names_kept():
            new = type(optimizer).from_config(optimizer.get_config())
    except Exception:
        # An optimizer of the user's that has no configuration: it is compared as it is.
        return []
    if new.built or not saved.is_unbuilt(new):
        return []
    for index, variable in enumerate(new.variables):
        value = saved.value(index)
        if shape_and_dtype(value) != shape_and_dtype(variable):
            return []
        assign(variable, value)
    new.build(private.variables_trained_by(optimizer))
    if len(new.variables) != len(optimizer.variables):
        return []
    return [
        Assignment(variable=variable, value=host_array(begun))
        for variable, begun in zip(optimizer.variables, new.variables, strict=True)
    ]


def all_assigned(optimizers: Iterable[Any], assignments: Iterable[Assignment]) -> list[Any]:
    """Return the optimizers whose variables are all assigned."""
    assigned = {id(assignment.variable) for assignment in assignments}
    return [
        optimizer
        for optimizer in optimizers
        if all(id(variable) in assigned for variable in optimizer.variables)
    ]


def _main_optimizer(model: Any, extra: Any) -> Any:
    optimizer = extra or getattr(model, "optimizer", None)
    return optimizer if isinstance(optimizer, keras.optimizers.Optimizer) else None


def _scopes(model: Any, extra: Any, state: TrainingState | None) -> dict[int, bool]:
    """Return, by the live optimizers' ids, whether they built the one that they wrap in their own name scope."""
    scoped = training_state.how_built(state).scoped
    return dict(zip(map(id, private.optimizers_of(model, extra)), scoped, strict=False))


def _value(found: OpenPayload, index: int) -> Array:
    value: Array = found.variables()[f"{_VARIABLES}{index}"]
    return value


def _legacy_value(found: OpenPayload, index: int) -> Array:
    return legacy_h5.optimizer_values(found)[index]
