"""Base of the callbacks that save: their saves, and copies that begin saves of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ckptstore.records import Checkpoint
from ckptstore.training.saving.saves import Saves


class SavingCallback:
    """Mixin of the callbacks that save, to stand before Keras' own class.

    Attributes:
        run: The run; None before the first fit that names its run itself.
    """

    run: str | None
    _saves: Saves

    @property
    def store_path(self) -> Path:
        """The directory of the store, absolute."""
        return self._saves.path

    @property
    def background(self) -> bool:
        """True if saves are made in the background."""
        return self._saves.background

    @property
    def last(self) -> Checkpoint | None:
        """The checkpoint that was saved last, or None."""
        return self._saves.last

    def wait(self) -> None:
        """Wait until every save so far is durable, in the manifest and published; an interrupt ends the waiting alone.

        What `keep` removes with the last one may be removed from the disk a moment later.

        Raises:
            CheckpointStoreError: One failed, and `on_save_error` asks for an error.
        """
        self._saves.drain()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running fit out: a copy begins its own, in another process or next to the original."""
        return {**self.__dict__, "_saves": copy.copy(self._saves)}
