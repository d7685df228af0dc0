"""Tables of text for a terminal, laid out here because rich takes noticeable time for each row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_GAP = 2
# Columns of this priority are never left out.
ALWAYS_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its heading.
        cells: Its texts; printable.
        priority: Columns of lower priority are left out first where there is no room.
        left: True to align text to the left; numbers are aligned to the right.
    """

    name: str
    cells: tuple[str, ...]
    priority: float = ALWAYS_SHOWN
    left: bool = False

    @property
    def width(self) -> int:
        """Its width in terminal cells."""
        return max(map(cell_width, (self.name, *self.cells)))


def column(name: str, cells: Iterable[str], *, priority: float = ALWAYS_SHOWN, left: bool = False) -> Column:
    """Return a column; see `Column` for the arguments."""
    return Column(name=name, cells=tuple(cells), priority=priority, left=left)


@dataclass(frozen=True, slots=True)
class TextTable:
    """Columns side by side, under a line of their names."""

    columns: Sequence[Column]

    @property
    def width(self) -> int:
        """Its width in terminal cells."""
        return sum(column.width + _GAP for column in self.columns) - _GAP

    def lines(self, *, bold: bool = False) -> Iterator[str]:
        """Yield its lines: first the names, in bold if asked for, then the rows."""
        widths = [column.width for column in self.columns]
        rows = zip(*((column.name, *column.cells) for column in self.columns), strict=True)
        for number, row in enumerate(rows):
            cells = zip(row, self.columns, widths, strict=True)
            line = (
                (" " * _GAP)
                .join(pad(cell, width, left=column.left) for cell, column, width in cells)
                .rstrip()
            )
            yield f"\x1b[1m{line}\x1b[0m" if bold and number == 0 else line

    def folded(self) -> Table:
        """Return it as a table of rich, which folds cells where the terminal is too narrow."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for column in self.columns:
            table.add_column(Text(column.name), justify="left" if column.left else "right", overflow="fold")
        for row in zip(*(column.cells for column in self.columns), strict=True):
            table.add_row(*plain_cells(row))
        return table


def table_of(columns: Mapping[str, Iterable[str]], *, left: Collection[str] = ()) -> TextTable:
    """Return a table of columns by their names; those in `left` hold text, the others numbers."""
    return TextTable([column(name, cells, left=name in left) for name, cells in columns.items()])


def fit_columns(columns: Sequence[Column], width: int | None) -> list[Column]:
    """Return the columns that fit a width, leaving out those of lowest priority; all where it is None."""
    shown = list(columns)
    widths = {id(column): column.width for column in columns}
    while width is not None and sum(widths[id(column)] + _GAP for column in shown) - _GAP > width:
        least = min(shown, key=lambda column: column.priority)
        if least.priority == ALWAYS_SHOWN:
            break
        shown.remove(least)
    return shown


def pad(cell: str, width: int, *, left: bool) -> str:
    """Return a cell padded to its column's width, aligned to the left or to the right."""
    if cell.isascii():
        return cell.ljust(width) if left else cell.rjust(width)
    padding = " " * (width - cell_width(cell))
    return cell + padding if left else padding + cell


def cell_width(text: str) -> int:
    """Return the number of terminal cells of a text: some characters take two, some none.

    Example:
        >>> cell_width("loss"), cell_width("损失")
        (4, 4)
    """
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def facts_table() -> Table:
    """Return an empty table of names and values, one fact on each line."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def plain_cells(cells: Iterable[str]) -> Iterator[Text]:
    """Return cells that rich prints as they are: in plain strings it would interpret markup and emoji names."""
    from rich.text import Text

    return (Text(cell) for cell in cells)
