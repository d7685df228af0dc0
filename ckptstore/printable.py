r"""Text that others have written, made safe to show: nothing in it acts on a terminal, or on the order of a page.

Characters that are not printable (`str.isprintable`) are shown as escapes: control characters, among them the C1
controls, by which a terminal takes commands too, line separators, and those that change the direction of text.
"""

from __future__ import annotations

import json
import re

# What may not be printable: everything but printable ASCII and line breaks. Most text has none of it.
_SUSPECT = re.compile(r"[^\n -~]")


def printable(text: str) -> str:
    r"""Return text in which all is escaped that could move the cursor, change colours or break the line.

    Example:
        >>> printable("val_loss\x1b[31m\n 损失")
        'val_loss\\x1b[31m\\n 损失'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    r"""Return text as `printable` does, but with its line breaks.

    Example:
        >>> printable_lines("one\ntwo\u202e")
        'one\ntwo\\u202e'
    """
    return _SUSPECT.sub(lambda match: printable(match[0]), text)


def printable_json(text: str) -> str:
    r"""Return a JSON text that means the same, with escapes of JSON for all that is not printable but line breaks.

    Example:
        >>> printable_json('["损失", "\x9b2J"]')
        '["损失", "\\u009b2J"]'
    """
    return _SUSPECT.sub(
        lambda match: match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1], text
    )
