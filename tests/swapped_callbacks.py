"""A pytest plugin that puts our callbacks in the place of Keras', before Keras' own tests are imported."""

from __future__ import annotations

from typing import Any

import keras
import pytest

import ckptstore

made: list[str] = []


class ModelCheckpoint(ckptstore.ModelCheckpoint):
    """Ours, counted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        made.append(type(self).__name__)


def pytest_configure() -> None:
    """Swap; only where pytest takes this module as a plugin, not where it is merely imported."""
    keras.callbacks.ModelCheckpoint = ModelCheckpoint
    keras.src.callbacks.ModelCheckpoint = ModelCheckpoint


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"callbacks of ours: {len(made)}")
