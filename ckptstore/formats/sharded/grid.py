"""`Grid`: a variable divided into parts by cuts along its dimensions, each part with the process that owns it.

Parts of a grid cover the variable, each element once: that needs no check of its own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

# The name of the part that is all of a variable.
WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a variable.

    Attributes:
        start: Its first index along each dimension.
        stop: The index after its last, likewise.
        owner: The process that writes it.
        is_whole: True if it is all of the variable.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    owner: int
    is_whole: bool

    @property
    def name(self) -> str:
        """Its name in the member that holds it."""
        if self.is_whole:
            return WHOLE
        return ",".join(f"{first}-{last}" for first, last in zip(self.start, self.stop, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True, slots=True)
class Grid:
    """The parts of a variable.

    Attributes:
        cuts: For each dimension the ascending indices at which a part begins, and its size at the end.
        owners: The process that owns each part, the last dimension fastest.

    Raises:
        ValueError: They do not make a grid.

    Example:
        >>> grid = Grid(cuts=((0, 2, 4), (0, 3)), owners=(0, 1))
        >>> grid.shape, [part.name for part in grid.parts()]
        ((4, 3), ['0-2,0-3', '2-4,0-3'])
    """

    cuts: tuple[tuple[int, ...], ...]
    owners: tuple[int, ...]

    def __post_init__(self) -> None:
        for cuts in self.cuts:
            ascends = all(first < second for first, second in pairwise(cuts)) or cuts == (0, 0)
            if len(cuts) < 2 or cuts[0] != 0 or not ascends:
                raise ValueError(f"{cuts} are no cuts of a dimension")
        if len(self.owners) != prod(self._counts):
            raise ValueError(f"{len(self.owners)} owners of {prod(self._counts)} parts")

    @property
    def _counts(self) -> tuple[int, ...]:
        return tuple(len(cuts) - 1 for cuts in self.cuts)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole variable."""
        return tuple(cuts[-1] for cuts in self.cuts)

    @property
    def is_whole(self) -> bool:
        """True if it is one part."""
        return len(self.owners) == 1

    def parts(self) -> Iterator[Part]:
        """Yield all parts, the last dimension fastest."""
        places = bounds_of(self.cuts)
        return (
            Part(start, stop, owner, self.is_whole)
            for (start, stop), owner in zip(places, self.owners, strict=True)
        )

    def parts_of(self, process: int) -> Iterator[Part]:
        """Yield the parts that a process owns."""
        return (self._part(number) for number, owner in enumerate(self.owners) if owner == process)

    def parts_within(self, start: Sequence[int], stop: Sequence[int]) -> Iterator[Part]:
        """Yield the parts that have an element in a region.

        Example:
            >>> grid = Grid(cuts=((0, 2, 4, 6),), owners=(0, 1, 0))
            >>> [part.name for part in grid.parts_within([1], [3])], list(grid.parts_within([2], [2]))
            (['0-2', '2-4'], [])
        """
        if any(last <= first for first, last in zip(start, stop, strict=True)):
            return
        places = zip(self.cuts, start, stop, strict=True)
        wanted = [
            range(bisect_right(cuts, first) - 1, bisect_left(cuts, last)) for cuts, first, last in places
        ]
        for place in product(*wanted):
            number = 0
            for index, count in zip(place, self._counts, strict=True):
                number = number * count + index
            yield self._part(number)

    def _part(self, number: int) -> Part:
        start, stop, rest = [], [], number
        for cuts in reversed(self.cuts):
            rest, index = divmod(rest, len(cuts) - 1)
            start.append(cuts[index])
            stop.append(cuts[index + 1])
        return Part(tuple(reversed(start)), tuple(reversed(stop)), self.owners[number], self.is_whole)


def bounds_of(cuts: Sequence[Sequence[int]]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield start and stop of each part that cuts make, the last dimension fastest.

    Example:
        >>> list(bounds_of([(0, 2, 4), (0, 3)]))
        [((0, 0), (2, 3)), ((2, 0), (4, 3))]
    """
    return zip(product(*(one[:-1] for one in cuts)), product(*(one[1:] for one in cuts)), strict=True)


def whole(shape: Sequence[int], owner: int = 0) -> Grid:
    """Return the grid of a variable that one process writes in one part.

    Example:
        >>> whole((2, 3)), whole(())
        (Grid(cuts=((0, 2), (0, 3)), owners=(0,)), Grid(cuts=(), owners=(0,)))
    """
    return Grid(cuts=tuple((0, int(size)) for size in shape), owners=(owner,))
