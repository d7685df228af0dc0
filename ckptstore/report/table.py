"""Tables as people read them: columns of text, written without rich, which takes its time for each row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_GAP = 2
# Columns of this rank are never given up.
KEEP_ALWAYS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table, and how much it matters; its cells can be printed."""

    name: str
    cells: tuple[str, ...]
    rank: float = KEEP_ALWAYS
    left: bool = False

    @property
    def width(self) -> int:
        """Return the terminal cells that it takes."""
        return max(map(cell_width, (self.name, *self.cells)))


def column(name: str, cells: Iterable[str], *, rank: float = KEEP_ALWAYS, left: bool = False) -> Column:
    """Return a column; numbers stand to the right, and with `left` text to the left."""
    return Column(name=name, cells=tuple(cells), rank=rank, left=left)


@dataclass(frozen=True, slots=True)
class TextTable:
    """Columns side by side, with a line of names above."""

    columns: Sequence[Column]

    @property
    def width(self) -> int:
        """Return the terminal cells that it takes."""
        return sum(column.width + _GAP for column in self.columns) - _GAP

    def lines(self, *, bold: bool = False) -> Iterator[str]:
        """Yield its lines, the first of them the names."""
        widths = [column.width for column in self.columns]
        rows = zip(*((column.name, *column.cells) for column in self.columns), strict=True)
        for number, row in enumerate(rows):
            placed = zip(row, self.columns, widths, strict=True)
            line = (
                (" " * _GAP)
                .join(padded(cell, width, left=column.left) for cell, column, width in placed)
                .rstrip()
            )
            yield f"\x1b[1m{line}\x1b[0m" if bold and number == 0 else line

    def folded(self) -> Table:
        """Return it for rich, which folds cells where a terminal is too narrow."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for one in self.columns:
            table.add_column(Text(one.name), justify="left" if one.left else "right", overflow="fold")
        for row in zip(*(one.cells for one in self.columns), strict=True):
            table.add_row(*texts(row))
        return table


def fitting(columns: Sequence[Column], width: int | None) -> list[Column]:
    """Give up the columns that matter least, until the rest fits or only those are left that always stay."""
    shown = list(columns)
    widths = {id(column): column.width for column in columns}
    while width is not None and sum(widths[id(column)] + _GAP for column in shown) - _GAP > width:
        least = min(shown, key=lambda column: column.rank)
        if least.rank == KEEP_ALWAYS:
            break
        shown.remove(least)
    return shown


def padded(cell: str, width: int, *, left: bool) -> str:
    """Return text as wide as its column; numbers stand to the right."""
    if cell.isascii():
        return cell.ljust(width) if left else cell.rjust(width)
    room = " " * (width - cell_width(cell))
    return cell + room if left else room + cell


def cell_width(text: str) -> int:
    """Return the terminal cells that a text takes: some characters take two, and some none.

    Example:
        >>> cell_width("loss"), cell_width("损失")
        (4, 4)
    """
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def grid() -> Table:
    """Return an empty table of two columns without names, for facts one a line."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def texts(cells: Iterable[str]) -> Iterator[Text]:
    """Return the cells as they are: rich would read markup and emoji names out of plain strings."""
    from rich.text import Text

    return (Text(cell) for cell in cells)
