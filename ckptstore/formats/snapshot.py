"""Snapshot of a model: the arrays and documents of a payload before they are bytes.

Model adapters make snapshots; formats write them. They share nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ckptstore.records import Format
from ckptstore.system.arrays import Array

if TYPE_CHECKING:
    import h5py

    from ckptstore.formats.sharded.shards import Shards

# A model's variables: trainable, non-trainable, those of its metrics.
VariableKinds = tuple[Sequence[Any], Sequence[Any], Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """An array of a payload. It is read when it is written, so that the state is not held twice.

    Attributes:
        path: Its place in the HDF5 file, such as ``"layers/dense/vars/0"``.
        shape: Its shape; ``()`` for a scalar, and any dimension may be 0.
        dtype: numpy's or ml_dtypes' dtype.
        read: Returns the values as a host array of exactly this shape and dtype; a view where possible.
        attributes: Text attributes of the HDF5 dataset (Keras marks bfloat16 by ``{"dtype": "bfloat16"}``).
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Array]
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """State that resuming needs beyond weights and optimizer: a JSON document and named arrays.

    Attributes:
        document: JSON values only.
        arrays: Arrays by name; a name may contain ``/``.
    """

    document: Mapping[str, Any]
    arrays: Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitState:
    """Position of a running fit, and what replaces live values, for a training state.

    Attributes:
        values: Plain values and arrays by name: position, callbacks, data.
        overrides: Values to save instead of the live ones, by id of the variable: those that a validation has
            changed since.
        generators: States of the global random generators to save instead of the present ones, or None.
        variables: The model's variables of each kind if the caller has just collected them, else None.
    """

    values: Mapping[str, Any]
    overrides: Mapping[int, Array] = field(default_factory=dict)
    generators: Any = None
    variables: VariableKinds | None = None


class BulkCopy(Protocol):
    """A function that copies the values of all variables at once."""

    def __call__(self, targets: Sequence[Array]) -> None:
        """Copy the values, in order, into arrays of the same shapes and dtypes."""

    def prepare(self, targets: Sequence[Array]) -> None:
        """Do the one-time work of the first copy into these targets in advance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A model's variables, documents and training state, to be written as one payload.

    Attributes:
        format: The format of the payload.
        variables: All arrays, in the order in which they are written.
        attributes: Text attributes by HDF5 group path (Keras stores each object's ``name``).
        documents: Members of the ``.keras`` archive other than the weights, by name, in order.
        state: Training state, or None when the payload is not meant to be resumed from.
        fill: For format ``"h5"`` only: writes the model into an open, empty `h5py.File`. If set, `variables` and
            `attributes` are not used.
        arrays: Returns the values of all variables in order, faster than `Variable.read` for each; or None. The
            values are views where possible, and are read one after the other.
        copy: Copies all variables at once into arrays of their shapes and dtypes, faster than one by one; or None.
        shards: For a format of shards only: how the model is divided among processes, of which `variables` are the
            parts of one; or None.
    """

    format: Format
    variables: tuple[Variable, ...] = ()
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    state: TrainingState | None = None
    fill: Callable[[h5py.File], None] | None = None
    arrays: Callable[[], Iterator[Array]] | None = None
    copy: BulkCopy | None = None
    shards: Shards | None = None

    def values(self) -> Iterator[Array]:
        """Return the values of the variables, in order."""
        return (variable.read() for variable in self.variables) if self.arrays is None else self.arrays()
