"""Lines of a terminal's screen, each cut to its width; names of others in them are safe to show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.report.glyphs import Glyphs
from ckptstore.report.table import cell_width, pad

if TYPE_CHECKING:
    from rich.text import Text

# Part of a line: text, and its style for rich.
Part = tuple[str, str]
# Cells of the names in front of facts.
_LABEL = 13


class Screen:
    """Makes lines for a terminal.

    Attributes:
        width: Columns of the terminal.
        glyphs: Characters that it can show.
    """

    def __init__(self, width: int, glyphs: Glyphs) -> None:
        self.width, self.glyphs = width, glyphs

    def line(self, *parts: Part) -> Text:
        """Return a line of parts, which have been made safe to show."""
        from rich.text import Text

        line = Text(no_wrap=True, overflow="crop", end="")
        room = self.width
        for text, style in parts:
            shown = self.glyphs.shorten(text, room)
            line.append(shown, style or None)
            room -= cell_width(shown)
        return line

    def fact(self, name: str, *parts: Part) -> Text:
        """Return a line of a name and of what is known under it."""
        label = self.glyphs.shorten(self.glyphs.text(name), _LABEL)
        return self.line((f" {pad(label, _LABEL, left=True)} ", "bold"), *parts)

    def ends(self, left: Part, right: Part) -> Text:
        """Return a line with one text at its beginning, cut on its left where there is no room, and one at its end."""
        room = self.width - cell_width(right[0]) - 2
        text = left[0]
        if cell_width(text) > room:
            while text and cell_width(text) > room - 1:
                text = text[1:]
            text = f"{self.glyphs.cut}{text}" if room > 8 else ""
        between = " " * max(0, self.width - cell_width(text) - cell_width(right[0]))
        return self.line((text, left[1]), (between, ""), right)

    def rule(self, *parts: Part) -> Text:
        """Return a rule across the screen with a text near its left end."""
        used = sum(cell_width(text) for text, _ in parts)
        rule = self.glyphs.rule
        return self.line((f"{rule * 2} ", "dim"), *parts, (f" {rule * max(0, self.width - used - 4)}", "dim"))
