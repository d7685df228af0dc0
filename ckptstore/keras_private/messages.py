"""Lines printed as Keras prints its own; fallback: plain ones."""

from __future__ import annotations

from ckptstore.keras_private import inside


def print_message(text: str) -> None:
    """Print a line as Keras prints its own, following its switch for interactive logging."""
    (print if inside.io_utils is None else inside.io_utils.print_msg)(text)
