"""Messages printed in the way of Keras' own; fallback: stdout."""

from __future__ import annotations

from ckptstore.keras.private import modules
from ckptstore.system import messages


def print_message(text: str) -> None:
    """Print a line as Keras does, following its switch for interactive logging; raises nothing."""
    messages.print_by(print if modules.io_utils is None else modules.io_utils.print_msg, text)
