"""Small graphics out of characters: curves and bars, in ASCII where the terminal has nothing better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ckptstore.printable import printable
from ckptstore.report.table import cell_width


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """The characters that a terminal can show.

    Attributes:
        encoding: The terminal's encoding.
        levels: Characters of a curve, the lowest first.
        full: The done part of a bar.
        empty: The rest of a bar.
        rule: A line across the screen.
        cut: Stands for what was cut off.
        times: The sign of multiplication.
        chosen: Marks the chosen row.
        above: Tells that there are rows above.
        below: Tells that there are rows below.
    """

    encoding: str = "utf-8"
    levels: str = "▁▂▃▄▅▆▇█"
    full: str = "█"
    empty: str = "░"
    rule: str = "─"
    cut: str = "…"
    times: str = "×"
    chosen: str = "▶"
    above: str = "↑"
    below: str = "↓"

    def text(self, text: str) -> str:
        """Return text of others as it can be shown: nothing in it acts on the terminal, or cannot be encoded."""
        shown = printable(text)
        if shown.isascii():
            return shown
        return shown.encode(self.encoding, "backslashreplace").decode(self.encoding, "replace")

    def shorten(self, text: str, width: int) -> str:
        """Return a text that takes at most `width` cells of the terminal.

        Example:
            >>> GLYPHS.shorten("validation_accuracy", 10), GLYPHS.shorten("损失函数", 5)
            ('validatio…', '损失…')
        """
        if cell_width(text) <= width:
            return text
        room = width - len(self.cut)
        if room < 0:
            return ""
        kept, used = [], 0
        for char in text:
            used += cell_width(char)
            if used > room:
                break
            kept.append(char)
        return "".join(kept) + self.cut

    def bar(self, share: float, width: int) -> str:
        """Return a bar of which a share from 0 to 1 is full.

        Example:
            >>> GLYPHS.bar(0.5, 6), ASCII.bar(0.99, 4)
            ('███░░░', '###-')
        """
        full = min(width, max(0, math.floor(share * width)))
        return self.full * full + self.empty * (width - full)

    def curve(self, values: Sequence[float], width: int) -> str:
        """Return a curve of at most `width` characters; values that are not finite are shown as ``x``.

        More values than that are put together in equal parts, each shown by its mean. About a tenth of them at either
        end may be beyond the curve, so that a first loss, far above all others, does not flatten the rest.

        Example:
            >>> GLYPHS.curve([4, 3, 2, float("nan"), 1], 8), ASCII.curve(range(100), 8)
            ('█▆▃x▁', '__.:=*##')
            >>> GLYPHS.curve([900, 5, 4, 3, 3, 2, 2, 1, 1, 0], 10)
            '██▆▅▅▃▃▁▁▁'
        """
        if not values or width < 1:
            return ""
        points = [_mean(part) for part in _parts(values, width)]
        finite = sorted(point for point in points if math.isfinite(point)) or [0.0]
        beyond = (len(finite) + 5) // 10
        low, high = finite[beyond], finite[-1 - beyond]
        return "".join(self._level(point, low, high) for point in points)

    def _level(self, value: float, low: float, high: float) -> str:
        if not math.isfinite(value):
            return "x"
        top = len(self.levels) - 1
        # Halves first: the difference of two large numbers may be infinite.
        span = high / 2 - low / 2
        if span <= 0:
            return self.levels[top // 2]
        return self.levels[round(min(1.0, max(0.0, (value / 2 - low / 2) / span)) * top)]


def _parts(values: Sequence[float], count: int) -> list[Sequence[float]]:
    """Return the values in at most `count` parts of nearly equal length, in order."""
    count = min(count, len(values))
    bounds = [number * len(values) // count for number in range(count + 1)]
    return [values[begin:end] for begin, end in pairwise(bounds)]


def _mean(values: Sequence[float]) -> float:
    """Return a mean that is not finite if a value is not."""
    return sum(value / len(values) for value in values)


GLYPHS = Glyphs()
ASCII = Glyphs(
    encoding="ascii",
    levels="_.-:=+*#",
    full="#",
    empty="-",
    rule="-",
    cut="~",
    times="x",
    chosen=">",
    above="^",
    below="v",
)


def glyphs_for(encoding: str | None) -> Glyphs:
    """Return what a stream of an encoding can show: characters of Unicode if it has all of them, else ASCII.

    Example:
        >>> glyphs_for("utf-8") is GLYPHS, glyphs_for("iso-8859-1").levels
        (True, '_.-:=+*#')
    """
    name = encoding or "ascii"
    needed = "".join(
        (
            GLYPHS.levels,
            GLYPHS.full,
            GLYPHS.empty,
            GLYPHS.rule,
            GLYPHS.cut,
            GLYPHS.times,
            GLYPHS.chosen,
            GLYPHS.above,
            GLYPHS.below,
        )
    )
    try:
        needed.encode(name)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return GLYPHS
