"""Tests of the division of variables: parts of a grid, the plan of owners, and regions that are read."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.hdf5.dtypes import stored_type
from ckptstore.formats.hdf5.reader import StoredDataset
from ckptstore.formats.sharded import regions
from ckptstore.formats.sharded.grid import Grid, whole
from ckptstore.formats.sharded.owners import Placement, plan_owners
from ckptstore.storage.random_access import InMemoryFile


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    cuts = []
    for size in draw(st.lists(st.integers(0, 9), max_size=4)):
        inner = draw(st.sets(st.integers(1, size - 1))) if size > 1 else set()
        cuts.append((0, *sorted(inner), size) if size else (0, 0))
    count = prod(len(one) - 1 for one in cuts)
    return Grid(
        cuts=tuple(cuts), owners=tuple(draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    )


@st.composite
def regions_of(draw: st.DrawFn) -> tuple[Grid, tuple[int, ...], tuple[int, ...]]:
    grid = draw(grids())
    bounds = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in grid.shape]
    return grid, tuple(first for first, _ in bounds), tuple(last for _, last in bounds)


@given(grids())
def test_parts_cover_each_element_once_and_are_named_apart(grid: Grid) -> None:
    count = np.zeros(grid.shape, int)
    for part in grid.parts():
        count[tuple(map(slice, part.start, part.stop))] += 1
        assert part.shape == count[tuple(map(slice, part.start, part.stop))].shape
    assert (count == 1).all()
    parts = list(grid.parts())
    assert len({part.name for part in parts}) == len(parts)
    assert sorted(part.name for process in range(4) for part in grid.parts_of(process)) == sorted(
        part.name for part in parts
    )
    assert [part.owner for part in parts] == list(grid.owners)


@given(regions_of())
def test_the_parts_of_a_region_are_those_that_meet_it(
    case: tuple[Grid, tuple[int, ...], tuple[int, ...]],
) -> None:
    grid, start, stop = case
    wanted = np.zeros(grid.shape, bool)
    wanted[tuple(map(slice, start, stop))] = True
    expected = [part for part in grid.parts() if wanted[tuple(map(slice, part.start, part.stop))].any()]
    assert list(grid.parts_within(start, stop)) == expected


@pytest.mark.parametrize(
    ("cuts", "owners"),
    [
        (((0, 2, 2, 4),), (0, 0, 0)),
        (((1, 4),), (0,)),
        (((0,),), ()),
        (((0, 4, 2),), (0, 0)),
        (((0, 2, 4),), (0,)),
        ((), ()),
    ],
)
def test_what_is_no_grid_is_refused(cuts: tuple[tuple[int, ...], ...], owners: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        Grid(cuts=cuts, owners=owners)


# --- owners --------------------------------------------------------------------------------------


def split(rows: int, columns: int, holders: object, shape: tuple[int, int] = (8, 8)) -> Placement:
    """Return a placement in rows x columns parts; `holders` gives the processes of each."""
    high, wide = shape[0] // rows, shape[1] // columns
    found = {
        ((row * high, column * wide), ((row + 1) * high, (column + 1) * wide)): holders(row, column)  # type: ignore[operator]
        for row in range(rows)
        for column in range(columns)
    }
    return Placement(path="kernel", shape=shape, itemsize=4, holders=found)


def test_copies_are_shared_out_evenly_and_an_owner_holds_what_it_owns() -> None:
    """With replica 0 as the owner, process 0 would write all of what everybody holds."""
    everywhere = [split(1, 1, lambda row, column: range(4)) for _ in range(12)]
    grids = plan_owners(everywhere)
    assert sorted(grid.owners[0] for grid in grids) == sorted([0, 1, 2, 3] * 3)
    halves = [split(4, 1, lambda row, column: {row // 2, row // 2 + 2}) for _ in range(4)]
    for grid in plan_owners(halves):
        assert grid.cuts == ((0, 2, 4, 6, 8), (0, 8))
        assert all(owner % 2 == row // 2 for row, owner in enumerate(grid.owners))
    owned = [sum(grid.owners.count(process) for grid in plan_owners(halves)) for process in range(4)]
    assert owned == [4, 4, 4, 4]


def test_the_plan_is_the_same_wherever_it_is_made() -> None:
    placements = [split(2, 4, lambda row, column: [(row + column) % 3, column % 3]) for _ in range(5)]
    turned = [
        Placement(
            path=one.path, shape=one.shape, itemsize=one.itemsize, holders=dict(reversed(one.holders.items()))
        )
        for one in placements
    ]
    assert plan_owners(placements) == plan_owners(turned)


def test_scalars_and_empty_arrays_have_an_owner() -> None:
    scalar = Placement(path="a", shape=(), itemsize=8, holders={((), ()): {2}})
    empty = Placement(path="b", shape=(0, 3), itemsize=8, holders={((0, 0), (0, 3)): {1, 2}})
    assert plan_owners([scalar, empty]) == [whole((), 2), whole((0, 3), 1)]


def test_parts_that_are_no_grid_are_refused() -> None:
    for holders in (
        {((0,), (4,)): [0]},
        {((0,), (5,)): [0], ((4,), (8,)): [0]},
        {((0,), (4,)): [0], ((4,), (8,)): []},
    ):
        with pytest.raises(InvalidArgumentError, match="grid"):
            plan_owners([Placement(path="bias", shape=(8,), itemsize=4, holders=holders)])


# --- regions -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    case=regions_of(),
    dtype=st.sampled_from(["int8", "float32", "complex128"]),
    strided=st.booleans(),
    slab=st.sampled_from([1, 16, 1 << 20]),
    row=st.sampled_from([0, 32 << 10]),
)
def test_a_region_is_read_into_any_memory(
    case: tuple[Grid, tuple[int, ...], tuple[int, ...]], dtype: str, strided: bool, slab: int, row: int
) -> None:
    """With every size of what is read at once, down to a single row."""
    grid, start, stop = case
    array = np.arange(prod(grid.shape)).astype(dtype).reshape(grid.shape)
    kind = stored_type(array.dtype)
    assert kind is not None
    source = InMemoryFile(memoryview(b"begin" + array.tobytes() + b"end"), Path("x"))
    dataset = StoredDataset(path="x", shape=grid.shape, kind=kind, offset=5)
    wanted = array[tuple(map(slice, start, stop))]
    out = np.zeros((*wanted.shape, 2), dtype)[..., 0] if strided else np.zeros(wanted.shape, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "_SLAB", slab)
        patch.setattr(regions, "_ROW", row)
        regions.read_region(source, dataset, start, stop, out)
    assert (out == wanted).all()
