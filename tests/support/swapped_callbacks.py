"""A pytest plugin that puts our callbacks in place of Keras', before Keras' own tests are imported."""

from __future__ import annotations

from pathlib import Path
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


class BackupAndRestore(ckptstore.BackupAndRestore):
    """Ours, counted, with payloads that the tests may damage in place, as any user."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        made.append(type(self).__name__)

    def _payload(self, newest: int) -> Path:
        path = super()._payload(newest)
        if path.exists():
            path.chmod(0o600)
        return path


def pytest_configure() -> None:
    """Swap; only where pytest takes this module as a plugin, not where it is merely imported."""
    for ours in (ModelCheckpoint, BackupAndRestore):
        setattr(keras.callbacks, ours.__name__, ours)
        setattr(keras.src.callbacks, ours.__name__, ours)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"callbacks of ours: {len(made)}")
