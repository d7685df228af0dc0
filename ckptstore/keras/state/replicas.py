"""Values that TensorFlow keeps once per replica: of variables in the scope of a strategy over several devices.

What training updates from reduced gradients is the same on each replica. Others differ: a batch normalisation's moving
statistics come from each replica's own part of a batch, and a metric sums there. The file has one value of each
variable, as Keras reads it; the values of the replicas join the training state, so that a resume is exact.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ckptstore.keras import private
from ckptstore.system.arrays import Array


@dataclass(frozen=True, slots=True, eq=False)
class ReplicaValue:
    """One replica's value of a variable, with what the other rooms use of a Keras variable.

    Attributes:
        path: The variable's path and the replica's number.
        variable: The variable of Keras.
        value: TensorFlow's variable on the replica's device.
    """

    path: str
    variable: Any
    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The value's shape."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> Any:
        """The value's dtype, as TensorFlow says it."""
        return self.value.dtype

    def assign(self, value: Array) -> None:
        """Set the value of this replica alone."""
        self.value.assign(value)


def replica_values(variables: Iterable[Any]) -> list[ReplicaValue]:
    """Return the replicas' values of variables that are spread over several; the same objects of TensorFlow each time.

    Example:
        >>> replica_values([keras.Variable(1.0)])
        []
    """
    tensorflow: Any = sys.modules.get("tensorflow")
    if keras.backend.backend() != "tensorflow" or tensorflow is None:
        return []
    found = []
    for variable in variables:
        value = variable.value
        if isinstance(value, tensorflow.distribute.DistributedValues):
            values = value.distribute_strategy.experimental_local_results(value)
            found += [
                ReplicaValue(f"{variable.path} on replica {number}", variable, one)
                for number, one in enumerate(values)
            ]
    return found


def cross_replica_array(value: Any) -> Array | None:
    """Return the value of a variable spread over replicas as Keras reads it, reduced; None for any other value.

    Where other processes have replicas, too, only those of this process are reduced: TensorFlow would wait for all
    processes, by a collective operation.
    """
    tensorflow: Any = sys.modules.get("tensorflow")
    if tensorflow is None or not isinstance(value, tensorflow.distribute.DistributedValues):
        return None
    own = private.own_replicas(value)
    if own is None:
        return np.asarray(value.numpy(), order="C")
    here = np.stack([one.numpy() for one in own])
    how = tensorflow.VariableAggregation
    if value.aggregation in (how.MEAN, how.SUM) and len(here) > 1:
        reduce = np.mean if value.aggregation == how.MEAN else np.sum
        return np.asarray(reduce(here, axis=0), here.dtype, order="C")
    return np.asarray(here[0], order="C")
