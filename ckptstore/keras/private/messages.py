"""Messages printed in the way of Keras' own; fallback: `print`."""

from __future__ import annotations

from ckptstore.keras.private import modules


def print_message(text: str) -> None:
    """Print a line as Keras does, following its switch for interactive logging."""
    (print if modules.io_utils is None else modules.io_utils.print_msg)(text)
