"""Atomic loading into a live model: everything is loaded, or the model is as it was.

Two ways: Keras' own code only assigns values that were compared before, and needs no copy of the old ones; a layer's
own code may fail at any point, so the old values are kept and restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras

from ckptstore.errors import RefusedByLayerError
from ckptstore.formats.payload import checkpoint_as_file
from ckptstore.formats.payload_format import OpenPayload
from ckptstore.keras import private
from ckptstore.keras.model.shared_variables import SharedVariables
from ckptstore.keras.model.torch_tensors import TensorViews
from ckptstore.keras.private.capture import Capture
from ckptstore.keras.state import assigning
from ckptstore.keras.state.arrays import stable_value
from ckptstore.keras.state.replicas import replica_values
from ckptstore.keras.state.training_state import Assignment
from ckptstore.records import Checkpoint


def load_variables(
    model: Any,
    checkpoint: Checkpoint,
    variables: Mapping[str, Any],
    assets: Mapping[str, bytes],
    *,
    plain: bool,
    optimizer: Any = None,
    skip: Iterable[Any] = (),
) -> None:
    """Have the model's objects load their variables; see `ckptstore.keras.private.load_variables`.

    Raises:
        RefusedByLayerError: A layer could not load its variables; `put_back` is False if `plain`.
    """
    try:
        private.load_variables(
            model,
            partial(checkpoint_as_file, checkpoint),
            variables,
            optimizer=optimizer,
            assets=assets,
            skip=skip,
        )
    except ValueError as error:
        raise RefusedByLayerError(reason=str(error), put_back=not plain) from error


def loadable_variables(found: OpenPayload, captured: Capture, plain: bool) -> Mapping[str, Any]:
    """Return a payload's variables in the form that is loaded with the fewest copies."""
    if any(private.sharding_across_processes(entry.value) is not None for entry in captured.entries):
        return SharedVariables(found, captured.entries)
    # On other backends a variable may keep using the array that it is given, which must then have its own memory.
    is_torch = keras.backend.backend() == "torch"
    if plain and is_torch and private.copies_on_assign(entry.value for entry in captured.entries):
        return TensorViews(found.variables(found.layout()))
    return found.variables()


def uses_only_keras_code(captured: Capture, model: Any, optimizers: Iterable[Any]) -> bool:
    """Return True if loading only assigns to variables, one by one, values that were compared with them before."""
    all_variables = captured.exact and all(entry.is_variable for entry in captured.entries)
    return all_variables and not private.has_custom_loading(model, *optimizers)


def load_atomically(load: Callable[[], None], plain: bool, model: Any, optimizers: Iterable[Any]) -> None:
    """Load everything or nothing.

    If only Keras' own code runs, everything that it could refuse was compared before, and the old values are not kept:
    on JAX, new values reuse the memory of old ones. An interrupt then leaves the model as it was saved, not as it was;
    and a loading that fails, for lack of memory or by the disk, is tried once more.
    """
    with private.kept_placements(live_variables(model, optimizers)):
        _load_atomically(load, plain, model, optimizers)


def _load_atomically(load: Callable[[], None], plain: bool, model: Any, optimizers: Iterable[Any]) -> None:
    if not plain:
        with restored_on_error(live_variables(model, optimizers)):
            load()
        return
    try:
        load()
    except BaseException as error:
        another = _failure_of(load)
        if another is not None:
            error.add_note(f"the model is changed in part: {type(another).__name__}: {another}")
        elif isinstance(error, Exception):
            return
        raise


def _failure_of(load: Callable[[], None]) -> BaseException | None:
    try:
        load()
    except BaseException as error:
        return error
    return None


def assign_atomically(assignments: Sequence[Assignment]) -> None:
    """Assign all values, or none if one cannot be assigned."""
    variables = [assignment.variable for assignment in assignments]
    with private.kept_placements(variables), restored_on_error(variables):
        assign(assignments)


def assign(assignments: Iterable[Assignment]) -> None:
    """Assign values to their variables."""
    for assignment in assignments:
        assigning.assign(assignment.variable, assignment.value)


def live_variables(model: Any, optimizers: Iterable[Any]) -> Iterator[Any]:
    """Yield all variables of a model and its optimizers."""
    yield from model.variables
    yield from model.metrics_variables
    for optimizer in optimizers:
        yield from optimizer.variables
    # Last: an assignment to a variable sets it on all replicas.
    yield from replica_values([*model.variables, *model.metrics_variables])


@contextmanager
def restored_on_error(variables: Iterable[Any]) -> Iterator[None]:
    """Restore variables if the block fails; keeps their values, on JAX by reference, elsewhere as host copies."""
    before: Mapping[int, tuple[Any, Any]] = {
        id(variable): (variable, stable_value(variable)) for variable in variables
    }
    try:
        yield
    except BaseException:
        for variable, value in before.values():
            variable.assign(value)
        raise
