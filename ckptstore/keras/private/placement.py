"""The devices that the values of variables lie on, and keeping them there when other values are assigned."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import keras

from ckptstore.keras.private import modules


def sharding_across_processes(variable: Any) -> Any:
    """Return the sharding of JAX that a value must have to be assigned to a variable that several processes share.

    Keras moves what it assigns to the variable's layout. Of a value that this process alone holds, JAX would first ask
    all processes whether theirs is equal, and wait for them.

    Returns:
        The sharding; None for a variable whose value this process holds alone.
    """
    if keras.backend.backend() != "jax" or not isinstance(variable, keras.Variable):
        return None
    layout = getattr(variable, "_layout", None)
    layout = getattr(layout, "backend_layout", layout)
    live = getattr(getattr(variable, "_value", None), "sharding", None)
    sharding = layout if hasattr(layout, "is_fully_addressable") else live
    return None if sharding is None or sharding.is_fully_addressable else sharding


@contextmanager
def placed_alone(place: Callable[[Any, Any], Any]) -> Iterator[None]:
    """For the block, have Keras place values that this process alone holds without asking other processes.

    This is for variables of JAX that are made in the block, and for code of Keras that assigns to shared ones.

    Args:
        place: Returns a value of JAX with a sharding over several processes, all of which have an equal value.
    """
    with ExitStack() as stack:
        if keras.backend.backend() == "jax":
            stack.enter_context(_distributed_by(place))
        elif keras.backend.backend() == "tensorflow":
            stack.enter_context(_assigned_to_own_replicas())
        yield


@contextmanager
def _distributed_by(place: Callable[[Any, Any], Any]) -> Iterator[None]:
    library: Any = modules.optional("backend.jax.distribution_lib")
    original = getattr(library, "distribute_tensor", None)
    if original is None:
        yield
        return

    def distribute(tensor: Any, layout: Any) -> Any:
        import jax

        sharding = getattr(layout, "backend_layout", layout)
        is_here = getattr(sharding, "is_fully_addressable", True)
        is_shared = not getattr(getattr(tensor, "sharding", None), "is_fully_addressable", True)
        if is_here or is_shared or isinstance(tensor, jax.core.Tracer):
            return original(tensor, layout)
        return place(tensor, sharding)

    library.distribute_tensor = distribute
    try:
        yield
    finally:
        library.distribute_tensor = original


@contextmanager
def _assigned_to_own_replicas() -> Iterator[None]:
    """Have TensorFlow assign to this process's replicas alone; it would reduce the values of all processes first."""
    kind: Any = keras.Variable
    original = getattr(kind, "_direct_assign", None)
    if original is None:
        yield
        return

    def assign(variable: Any, value: Any) -> None:
        own = own_replicas(variable.value)
        if own is None:
            original(variable, value)
            return
        import tensorflow as tf

        share = len(own) if variable.value.aggregation == tf.VariableAggregation.SUM else 1
        for replica in own:
            replica.assign(
                tf.cast(value, replica.dtype) / share if share > 1 else tf.cast(value, replica.dtype)
            )

    kind._direct_assign = assign
    try:
        yield
    finally:
        kind._direct_assign = original


def own_replicas(value: Any) -> list[Any] | None:
    """Return this process's replicas of a variable of TensorFlow of which other processes have some, too; else None."""
    tensorflow: Any = sys.modules.get("tensorflow")
    if tensorflow is None or not isinstance(value, tensorflow.distribute.DistributedValues):
        return None
    strategy = value.distribute_strategy
    if not isinstance(strategy, tensorflow.distribute.MultiWorkerMirroredStrategy):
        return None
    return list(strategy.experimental_local_results(value))


@contextmanager
def kept_placements(variables: Iterable[Any]) -> Iterator[None]:
    """Keep values that the block assigns on the devices of those that they replace.

    Keras does so for a variable with a layout, such as one that was made under a `keras.distribution`. What a script
    has put elsewhere itself, on other devices or in another kind of memory, an assignment moves to the default device.

    Args:
        variables: The variables; each may lack a value.
    """
    if keras.backend.backend() != "jax":
        yield
        return
    placed = list(_placed(variables))
    with_layout = [(variable, sharding) for variable, sharding in placed if hasattr(variable, "_layout")]
    for variable, sharding in with_layout:
        variable._layout = sharding
    try:
        yield
    finally:
        for variable, _ in with_layout:
            variable._layout = None
        _move(placed)


def _placed(variables: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the variables without a layout whose values a script has placed, each with the sharding of its value."""
    for variable in variables:
        if not isinstance(variable, keras.Variable) or getattr(variable, "_layout", None) is not None:
            continue
        value: Any = getattr(variable, "_value", None)
        if getattr(value, "committed", False) and hasattr(value, "sharding"):
            yield variable, value.sharding


def _move(placed: Iterable[tuple[Any, Any]]) -> None:
    """Move values that an assignment has put elsewhere all the same, as in a Keras without layouts."""
    import jax

    for variable, sharding in placed:
        value = variable.value
        if not value.sharding.is_equivalent_to(sharding, value.ndim):
            variable.assign(jax.device_put(value, sharding))
