"""The store that a callback writes a run to, from the beginning of a fit to its end."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckptstore.errors import InvalidArgumentError
from ckptstore.store.store import CheckpointStore
from ckptstore.training.job.fit_store import FitStore

# The writer of each run in this process: a fit that an exception ended has not closed its store.
_writers: weakref.WeakValueDictionary[tuple[Path, str], RunWriter] = weakref.WeakValueDictionary()


class RunWriter:
    """Opens a store for one run, and takes the run over from a callback whose fit an exception ended.

    Args:
        path: The store's directory, absolute.
        run: The run.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        self.run = run
        self.store: FitStore | None = None
        self._fit: object = None
        self._before: Callable[[], None] | None = None

    def open(
        self,
        fit: object,
        *,
        ready: Callable[[], None] | None = None,
        before: Callable[[], None] | None = None,
        opens: Callable[[Path], FitStore] = CheckpointStore,
    ) -> FitStore:
        """Open the store, finishing what a crash left, and become the run's writer.

        Args:
            fit: An object that all callbacks of one fit share, or None.
            ready: Called when the store is open and the run not yet taken; an error ends the opening.
            before: Called before another callback takes the run over, or this one opens the store again.
            opens: Opens the store; by default as one process has it.

        Raises:
            InvalidArgumentError: Two callbacks of this fit write one run.
            RunLockedError: Another process writes the run.
        """
        self.close_for_another()
        other = _writers.get((self.path, self.run))
        if other is not None and other is not self and other.store is not None:
            if fit is not None and other._fit is fit:
                raise InvalidArgumentError(
                    argument="run",
                    value=self.run,
                    reason=f"two callbacks of one fit write this run of {self.path}",
                    hint="give one of them another name: run='...'",
                )
            other.close_for_another()
        store = opens(self.path)
        try:
            if ready is not None:
                ready()
            store.claim(self.run)
        except BaseException:
            store.close()
            raise
        self.store, self._fit, self._before = store, fit, before
        _writers[self.path, self.run] = self
        return store

    def close_for_another(self) -> None:
        """Release the run, after the saves that are not finished."""
        before, self._before = self._before, None
        try:
            if before is not None and self.store is not None:
                before()
        finally:
            self.close()

    def close(self, error: BaseException | None = None) -> None:
        """Release the run and the store; after an `error` the start counts as one without progress."""
        store, self.store, self._before = self.store, None, None
        if store is not None:
            store.__exit__(None if error is None else type(error), error, None)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open store out: a copy opens its own."""
        return {**self.__dict__, "store": None, "_fit": None, "_before": None}
