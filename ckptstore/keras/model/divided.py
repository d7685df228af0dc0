"""A model divided for a payload of shards: which parts this process writes, and how each variable is sharded.

In one process all variables are whole. Of several processes each makes the same plan from what it knows of the devices,
and writes the parts that it owns, from its own shards: a variable that all of them hold is written by one of them. A
value that each process has by itself is that of a replica, and process 0 writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ckptstore.distributed.job import Job
from ckptstore.formats.sharded.grid import Grid, whole
from ckptstore.formats.sharded.owners import Placement, plan_owners
from ckptstore.formats.sharded.shards import ShardedVariable, Shards
from ckptstore.formats.snapshot import Variable
from ckptstore.keras.model.copy import Copier
from ckptstore.keras.model.copy_shards import shardings_of
from ckptstore.keras.private import raw_values
from ckptstore.keras.state.arrays import host_array, host_arrays
from ckptstore.keras.state.shards import (
    Bounds,
    described_sharding,
    holders_of,
    local_shards,
    spans_processes,
)
from ckptstore.system.arrays import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedParts:
    """The parts that this process writes.

    Attributes:
        shards: How the whole model is divided.
        variables: The parts that this process owns, in the order of `Shards.owned`.
        copier: Copies them at once.
        arrays: Returns their values, one after the other.
    """

    shards: Shards
    variables: tuple[Variable, ...]
    copier: Copier
    arrays: Callable[[], Iterator[Array]]


class DividedModel:
    """A model's variables, divided again only where a sharding has changed.

    Args:
        variables: The variables of the payload.
        copier: Copies their live values, in the same order.
        job: The processes that save together; None for this one alone.

    Attributes:
        whole: All variables, not divided, for a format of one process.
    """

    def __init__(self, variables: Sequence[Variable], copier: Copier, job: Job | None = None) -> None:
        self._variables = tuple(variables)
        self._copier = copier
        self._job = job
        self._shardings: list[Any] | None = None
        self._owned: OwnedParts | None = None
        self.whole = OwnedParts(
            shards=Shards(variables=()),
            variables=self._variables,
            copier=copier,
            arrays=partial(host_arrays, copier.values),
        )

    def now(self) -> OwnedParts:
        """Return this process's parts as they are now; the same object while nothing changes.

        Raises:
            InvalidArgumentError: The parts of a variable on the devices make no grid.
        """
        values = raw_values(self._copier.values)
        shardings = shardings_of(values)
        # A step may return an equal sharding in an object of its own; the comparison of lists looks for identity first.
        if self._owned is None or shardings != self._shardings:
            self._shardings = shardings
            self._owned = self._alone(shardings) if self._job is None else self._together(values, self._job)
        return self._owned

    def _alone(self, shardings: Sequence[Any]) -> OwnedParts:
        grids = [whole(variable.shape) for variable in self._variables]
        return replace(
            self.whole, shards=Shards(variables=tuple(map(_described, self._variables, grids, shardings)))
        )

    def _together(self, values: Sequence[Any], job: Job) -> OwnedParts:
        # By path: the order in which Keras finds variables may be that of a process's own dictionaries.
        order = sorted(range(len(self._variables)), key=lambda place: self._variables[place].path)
        variables, values = [self._variables[place] for place in order], [values[place] for place in order]
        live = {variables[index].path: self._copier.values[place] for index, place in enumerate(order)}
        arrays = dict(zip(live, values, strict=True))
        grids = _grids(variables, values)
        shards = Shards(
            variables=tuple(map(_described, variables, grids, shardings_of(values))),
            process=job.process,
            processes=job.processes,
        )
        known = dict(zip(live, variables, strict=True))
        parts = [
            _Part(
                variable=known[variable.path],
                live=live[variable.path],
                shape=part.shape,
                shard=_shard_number(arrays[variable.path], (part.start, part.stop)),
            )
            for variable, part in shards.owned()
        ]
        return OwnedParts(
            shards=shards,
            variables=tuple(part.as_variable() for part in parts),
            copier=Copier([part.live for part in parts], [part.shard for part in parts]),
            arrays=lambda: (part.read() for part in parts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A part of a variable that this process writes.

    Attributes:
        variable: The variable.
        live: Its live value.
        shape: The part's shape.
        shard: The number of the shard that is the part; None for all of a value that this process has by itself.
    """

    variable: Variable
    live: Any
    shape: tuple[int, ...]
    shard: int | None

    def read(self) -> Array:
        if self.shard is None:
            return host_array(self.live)
        (value,) = raw_values([self.live])
        return host_array(value.addressable_data(self.shard))

    def as_variable(self) -> Variable:
        return Variable(
            path=self.variable.path,
            shape=self.shape,
            dtype=self.variable.dtype,
            read=self.read,
            attributes=self.variable.attributes,
        )


def _described(variable: Variable, grid: Grid, sharding: Any) -> ShardedVariable:
    return ShardedVariable(
        path=variable.path,
        dtype=variable.dtype,
        grid=grid,
        sharding=described_sharding(sharding, len(variable.shape)),
    )


def _grids(variables: Sequence[Variable], values: Sequence[Any]) -> list[Grid]:
    shared = list(map(spans_processes, values))
    planned = iter(
        plan_owners(
            Placement(
                path=variable.path,
                shape=variable.shape,
                itemsize=variable.dtype.itemsize,
                holders=holders_of(value),
            )
            for variable, value, is_shared in zip(variables, values, shared, strict=True)
            if is_shared
        )
    )
    return [
        next(planned) if is_shared else whole(variable.shape)
        for variable, is_shared in zip(variables, shared, strict=True)
    ]


def _shard_number(value: Any, bounds: Bounds) -> int | None:
    return local_shards(value)[bounds].number if spans_processes(value) else None
