"""Plan of owners: which process writes which part, where several processes hold a copy of it.

Every process makes the same plan from what it knows of the devices, so that none has to ask another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from operator import sub

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.sharded.grid import Grid, bounds_of

# First indices, and those after the last, of a part of a variable.
Bounds = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the parts of a variable are.

    Attributes:
        path: The variable's path, for messages.
        shape: Its shape.
        itemsize: Size of an element in bytes.
        holders: For each part, which cover the variable as a grid, the processes that hold a copy.
    """

    path: str
    shape: tuple[int, ...]
    itemsize: int
    holders: Mapping[Bounds, Collection[int]]


def plan_owners(placements: Iterable[Placement]) -> list[Grid]:
    """Return the grid of each variable: a part is owned by the holder that owns the fewest bytes so far.

    Args:
        placements: Of all variables, in an order that is the same on every process.

    Raises:
        InvalidArgumentError: The parts of a variable are no grid.

    Example:
        >>> halves = {((0,), (4,)): [0, 1], ((4,), (8,)): [0, 1]}
        >>> placement = Placement(path="bias", shape=(8,), itemsize=4, holders=halves)
        >>> [grid.owners for grid in plan_owners([placement])]
        [(0, 1)]
    """
    owned: dict[int, int] = {}
    grids = []
    for placement in placements:
        cuts = _cuts(placement)
        owners = []
        for start, stop in bounds_of(cuts):
            holders = placement.holders.get((start, stop))
            if not holders:
                raise _no_grid(placement)
            owner = min(holders, key=lambda process: (owned.get(process, 0), process))  # on a tie the lowest
            owned[owner] = owned.get(owner, 0) + prod(map(sub, stop, start)) * placement.itemsize
            owners.append(owner)
        if len(owners) != len(placement.holders):
            raise _no_grid(placement)
        grids.append(Grid(cuts=cuts, owners=tuple(owners)))
    return grids


def _cuts(placement: Placement) -> tuple[tuple[int, ...], ...]:
    cuts = []
    for dimension, size in enumerate(placement.shape):
        begins = {start[dimension] for start, _ in placement.holders} | {0}
        cuts.append((*sorted(begins - {size}), size) if size else (0, 0))
    return tuple(cuts)


def _no_grid(placement: Placement) -> InvalidArgumentError:
    return InvalidArgumentError(
        argument=placement.path,
        value=[[list(start), list(stop)] for start, stop in placement.holders],
        reason=f"are parts that do not make a grid of shape {placement.shape}",
    )
