"""The store that a callback writes a run to, from the beginning of a fit to its end."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from ckptstore.errors import InvalidArgumentError
from ckptstore.store import CheckpointStore

# Who writes which run of which store in this process: a fit that an exception ended never closed its store.
_writers: weakref.WeakValueDictionary[tuple[Path, str], RunWriter] = weakref.WeakValueDictionary()


class RunWriter:
    """Opens a store for one run, in place of a callback whose fit an exception ended.

    Args:
        path: The store's directory, absolute.
        run: The run.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        self.run = run
        self.store: CheckpointStore | None = None
        self._fit: object = None

    def open(self, fit: object) -> CheckpointStore:
        """Open the store, finishing what a crash left, and become the run's writer.

        Args:
            fit: What is the same object for all callbacks of one fit, or None.

        Raises:
            InvalidArgumentError: Two callbacks of this fit write one run.
            RunLockedError: Another process writes the run.
        """
        self.close()
        other = _writers.get((self.path, self.run))
        if other is not None and other is not self and other.store is not None:
            if fit is not None and other._fit is fit:
                raise InvalidArgumentError(
                    argument="run",
                    value=self.run,
                    reason=f"two callbacks of one fit write this run of {self.path}",
                    hint="give one of them another name: run='...'",
                )
            other.close()
        store = CheckpointStore(self.path)
        try:
            store.claim(self.run)
        except BaseException:
            store.close()
            raise
        self.store, self._fit = store, fit
        _writers[self.path, self.run] = self
        return store

    def close(self, error: BaseException | None = None) -> None:
        """Let go of the run and the store; after an `error` the start counts as one that came to nothing."""
        store, self.store = self.store, None
        if store is not None:
            store.__exit__(None if error is None else type(error), error, None)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open store out: a copy opens its own."""
        return {**self.__dict__, "store": None, "_fit": None}
