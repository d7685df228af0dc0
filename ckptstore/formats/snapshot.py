"""What a payload is made of, before it is bytes: the one thing that model adapters and formats share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ckptstore.records import Format
from ckptstore.system.arrays import Array

if TYPE_CHECKING:
    import h5py

# A model's variables: trainable ones, others, those of metrics.
VariableKinds = tuple[Sequence[Any], Sequence[Any], Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One array of a payload, read when it is written, so that no second copy of the state is needed.

    Attributes:
        path: Where it lies in the HDF5 file, such as ``"layers/dense/vars/0"``.
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
    """What resuming needs beyond weights and optimizer: a JSON document and named arrays.

    Attributes:
        document: JSON values only.
        arrays: Arrays by name; a name may contain ``/``.
    """

    document: Mapping[str, Any]
    arrays: Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitState:
    """Where a running fit stands, on its way into a training state.

    Attributes:
        values: Plain values and arrays by name: position, callbacks, data.
        frozen: Values of variables that a validation has changed since, by the variables' ids; they are saved
            instead of the live ones.
        generators: States of the global random generators to save instead of the present ones, or None.
        variables: The model's variables of each kind, where these were just looked for, or None.
    """

    values: Mapping[str, Any]
    frozen: Mapping[int, Array] = field(default_factory=dict)
    generators: Any = None
    variables: VariableKinds | None = None


class BulkCopy(Protocol):
    """Copies the values of all variables at once."""

    def __call__(self, targets: Sequence[Array]) -> None:
        """Copy them into arrays of their shapes and dtypes, in their order."""

    def prepare(self, targets: Sequence[Array]) -> None:
        """Do what the first copy into these targets would have to do besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A model, taken apart for one of the payload formats.

    Attributes:
        format: Which payload this becomes.
        variables: All arrays, in the order in which they are written.
        attributes: Text attributes by HDF5 group path (Keras stores each object's ``name``).
        documents: Members of the ``.keras`` archive beside the weights, by name, in order.
        state: Training state, or None when the payload is not meant to be resumed from.
        fill: Only for format ``"h5"``, and for arrays that the streaming writer does not know: fills an
            open, empty `h5py.File`; then `variables` and `attributes` are not used.
        arrays: Returns the values of all variables, in their order, in less time than `Variable.read` of each; or None.
            They are asked for one after the other, and views where possible.
        copy: Copies all variables at once into arrays of their shapes and dtypes, in their order, faster than one after
            the other; or None.
    """

    format: Format
    variables: tuple[Variable, ...] = ()
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)
    state: TrainingState | None = None
    fill: Callable[[h5py.File], None] | None = None
    arrays: Callable[[], Iterator[Array]] | None = None
    copy: BulkCopy | None = None

    def values(self) -> Iterator[Array]:
        """Return the values of the variables, in their order."""
        return (variable.read() for variable in self.variables) if self.arrays is None else self.arrays()
