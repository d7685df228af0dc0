"""`Shards`: what a snapshot of one process says of the whole model; and `Reports`, by which processes meet in a save.

A snapshot with `Shards` has as its variables the parts that its process owns, in the order of `Shards.owned`: so it is
copied, and handed to another process, as every snapshot is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xxhash

from ckptstore.errors import InvalidArgumentError
from ckptstore.errors.save_failures import SaveFailureCause
from ckptstore.formats.sharded.grid import Grid, Part
from ckptstore.storage.durable_writer import Written

if TYPE_CHECKING:
    from ckptstore.formats.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardedVariable:
    """A variable of the whole model.

    Attributes:
        path: Its path.
        dtype: numpy's or ml_dtypes' dtype.
        grid: Its parts and their owners, which give its shape.
        sharding: How it lies on the devices, as JSON: ``{"axes": {"batch": 2, "model": 4}, "spec": [None, "model"]}``;
            None where nothing says so. It is for people: a restore asks the live model.
    """

    path: str
    dtype: np.dtype[Any]
    grid: Grid
    sharding: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One process's word on the member that it was to write.

    Attributes:
        process: The process.
        written: Size and digest of its member, which is durable; None where it could not be written.
        problem: What went wrong then.
        cause: What kind of problem that is.
    """

    process: int
    written: Written | None
    problem: str = ""
    cause: SaveFailureCause = "other"


class Reports(Protocol):
    """The reports of one save: other processes post them, process 0 waits for them."""

    def post(self, report: Report) -> None:
        """Post the report of this process; called once by each process but 0, also where its member failed."""

    def wait(self, limit_s: float) -> Sequence[Report]:
        """Return the reports of the other processes: of all, or of those that came in time; called by process 0.

        It may return as soon as one says that its member failed: this save cannot succeed then.

        Raises:
            SaveAbandonedError: It cannot, and more is known about that than the reports say.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """The division of a model among processes, as the snapshot of one of them has it.

    Attributes:
        variables: All variables of the model, equal and in the same order on every process.
        process: The number of this process, from 0.
        processes: The number of processes.
        reports: Where the processes meet; None for one process.
        limit_s: Seconds that process 0 waits for the other processes' reports once it has written its own member.
        members: Of a payload that was read: the snapshot of each process, with its parts and its state. They are
            written as they are, all by this process.
    """

    variables: tuple[ShardedVariable, ...]
    process: int = 0
    processes: int = 1
    reports: Reports | None = None
    limit_s: float = 60.0
    members: tuple[Snapshot, ...] = ()

    def owned(self, process: int | None = None) -> Iterator[tuple[ShardedVariable, Part]]:
        """Yield the parts that a process owns, by default this one, in the order in which they are written."""
        wanted = self.process if process is None else process
        for variable in self.variables:
            for part in variable.grid.parts_of(wanted):
                yield variable, part


def check_processes(snapshot: Snapshot, processes: int) -> Shards | None:
    """Return a snapshot's shards, which must be those of so many processes; None where one process has the whole.

    Raises:
        InvalidArgumentError: They are not.
    """
    found = 1 if snapshot.shards is None else snapshot.shards.processes
    if found != processes:
        raise InvalidArgumentError(
            argument="snapshot",
            value=f"of processes: {found}",
            reason=f"is saved by a job of {processes}",
            hint='Snapshots.take(format="sharded") takes one for each process',
        )
    return snapshot.shards


# Digests of plans, by the identity of their variables: a fit saves the same plan again and again.
_plans: dict[int, tuple[tuple[ShardedVariable, ...], str]] = {}
_MOST_PLANS = 8


def plan_digest(shards: Shards | None) -> str:
    """Return a digest of the variables, their parts and the parts' owners: equal on all processes of a save."""
    if shards is None:
        return ""
    known = _plans.get(id(shards.variables))
    if known is None:
        plan = xxhash.xxh3_128()
        for variable in shards.variables:
            grid = variable.grid
            plan.update(repr((variable.path, variable.dtype.name, grid.cuts, grid.owners)).encode())
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        known = _plans[id(shards.variables)] = shards.variables, plan.hexdigest()
    return known[1]


def check_plan(shards: Shards | None, plan: str) -> None:
    """Refuse to write parts for a payload of another plan: it could not be put together.

    Raises:
        InvalidArgumentError: The shards are not of this plan.
    """
    if plan_digest(shards) != plan:
        raise InvalidArgumentError(
            argument="snapshot",
            value=f"of variables: {len(shards.variables) if shards else 0}",
            reason="has other variables than process 0, or other parts of them",
            hint="every process needs the same model, on the same mesh of devices",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """How a payload that was read is divided, for people.

    Attributes:
        sizes: The size in bytes of each process's member, by process.
        parts: The number of parts of each variable, by path.
        shardings: How each variable lay on devices, see `ShardedVariable`; those of which nothing is known are left
            out.
    """

    sizes: tuple[int, ...]
    parts: Mapping[str, int]
    shardings: Mapping[str, Mapping[str, Any]]


def member_of(process: int) -> str:
    """Return the name of a process's member.

    Example:
        >>> member_of(3)
        'shards/00003.h5'
    """
    return f"shards/{process:05d}.h5"
