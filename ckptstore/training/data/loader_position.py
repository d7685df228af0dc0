"""Position of a source that reports it, and iterators that begin at that position.

A torchdata StatefulDataLoader reports its position itself. A Grain dataset does not: its iterators do, and Keras
creates them internally. `DataPosition` therefore wraps the data that Keras iterates over, and so knows the latest
iterator. On resume it sets the saved position on the loader, or on the next iterator.

A loader's position is not used where it is incomplete: it omits the random numbers that workers draw, unless the
dataset reports its own state. Nor is it used at the end of an epoch, where loaders start again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptstore.keras.private import FitLoop
from ckptstore.training.data import source

# For checkpoints without a position in the data. The beginning of an epoch can still be reached.
UNKNOWN = {
    "made": 0,
    "source": None,
    "source_position": None,
    "generators": None,
    "kept": None,
    "prefetched": None,
    "batches_inferred": None,
}


class DataPosition:
    """Position of one fit's training data.

    Args:
        loop: The fit. The data that Keras iterates over stays wrapped until the fit is released.
    """

    def __init__(self, loop: FitLoop) -> None:
        self._source = loop.source
        self._reports_position = source.reports_position(loop.source)
        self._data: _WrappedData | None = None
        self._iterator: Any = None
        self._position_to_set: Any = None
        self._next_iterator: Any = None
        self._has_created_iterator = False
        self._is_usable = (self._reports_position or loop.data.is_grain) and loop.data.stop_reading_ahead()
        if self._is_usable:
            loop.data.wrap_data(self._wrap_data)

    def capture(self) -> dict[str, Any] | None:
        """Return the position after the batch that was read last; None if it is unknown.

        Raises:
            Exception: Any error of the source's own method.
        """
        holder = self._source if self._reports_position else self._iterator
        if not self._is_usable or holder is None:
            return None
        dataset = source.unreported_dataset(self._source)
        return {"own": source.position(holder), "dataset": source.capture(dataset)}

    # --- resume ------------------------------------------------------------------------------------

    def go_to(self, saved: dict[str, Any]) -> None:
        """Make the next iterator begin at a saved position.

        Raises:
            Exception: Any error of the source's own method.
        """
        self._has_created_iterator, self._next_iterator = False, None
        if self._reports_position:
            source.set_position(self._source, saved["own"])
        else:
            self._position_to_set = saved["own"]

    def make_iterator(self) -> None:
        """Create the iterator now instead of with the first batch, so that it draws before generators are restored."""
        if not self._has_created_iterator and self._data is not None:
            self._next_iterator = iter(self._data)

    def restore_dataset(self, saved: dict[str, Any]) -> None:
        """Restore the state that the dataset had at the save and that its loader does not report."""
        if saved["dataset"] is not None:
            source.apply(source.unreported_dataset(self._source), saved["dataset"])

    def discard_iterator(self) -> None:
        """Discard an iterator that was created in advance and not used; the next one starts at the beginning."""
        self._next_iterator = None

    # --- iterators ---------------------------------------------------------------------------------

    def _wrap_data(self, data: Any) -> _WrappedData:
        self._data = _WrappedData(self, data)
        return self._data

    def iterate(self, data: Any) -> Iterator[Any]:
        """Return the iterator that was created in advance, or create one."""
        iterator, self._next_iterator = self._next_iterator, None
        if iterator is None:
            iterator = iter(data)
            position_to_set, self._position_to_set = self._position_to_set, None
            if position_to_set is not None:
                source.set_position(iterator, position_to_set)
            self._has_created_iterator = True
            # Keep no reference to a loader's iterator: its worker processes may end only when it is freed.
            self._iterator = None if self._reports_position else iterator
        return iterator  # type: ignore[no-any-return]


class _WrappedData:
    """Stands in for the data that Keras iterates over, and creates its iterators."""

    def __init__(self, position: DataPosition, data: Any) -> None:
        self._position = position
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        return self._position.iterate(self._data)

    def __getattr__(self, name: str) -> Any:
        # Keras 3.12 reads how far a torch loader prefetches. `object.__getattribute__` raises AttributeError while
        # `_data` is not set yet, where ``self._data`` would recurse.
        return getattr(object.__getattribute__(self, "_data"), name)
