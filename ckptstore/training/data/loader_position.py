"""The position of a source that reports its own, and iterators that begin there.

A loader is asked itself (torchdata's StatefulDataLoader); of a Grain dataset the iterators are asked, which Keras
makes inside of itself: so what Keras iterates over is wrapped, and the iterator that was made last is known. A
loader's position is not used where it is incomplete: its workers draw random numbers, which it does not report unless
its dataset does. Nor is it used at an epoch's end, where loaders start again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptstore.keras.private import FitLoop
from ckptstore.training.data import source

# The position in a checkpoint that has none: an epoch's beginning can be reached from it anyway.
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
    """The position of what one fit trains on.

    Args:
        loop: The fit; what it iterates over is wrapped until it is released.
    """

    def __init__(self, loop: FitLoop) -> None:
        self._source = loop.source
        self._reports_position = source.reports_position(loop.source)
        self._data: _Wrapped | None = None
        self._iterator: Any = None
        self._position_to_set: Any = None
        self._next_iterator: Any = None
        self._has_begun = False
        self._is_known = (self._reports_position or loop.data.is_grain) and loop.data.stop_reading_ahead()
        if self._is_known:
            loop.data.wrap_data(self._wrapped)

    def capture(self) -> dict[str, Any] | None:
        """Return the position after the batch that was taken last; None if it is not known.

        Raises:
            Exception: What the source's own method raises.
        """
        holder = self._source if self._reports_position else self._iterator
        if not self._is_known or holder is None:
            return None
        dataset = source.unreported_dataset(self._source)
        return {"own": source.position(holder), "dataset": source.capture(dataset)}

    # --- going there -------------------------------------------------------------------------------

    def go_to(self, saved: dict[str, Any]) -> None:
        """Let the iterator that is made next begin at a position.

        Raises:
            Exception: What the source's own method raises.
        """
        self._has_begun, self._next_iterator = False, None
        if self._reports_position:
            source.set_position(self._source, saved["own"])
        else:
            self._position_to_set = saved["own"]

    def make_iterator(self) -> None:
        """Make that iterator now, if Keras leaves it to the first batch: what that draws is drawn before it."""
        if not self._has_begun and self._data is not None:
            self._next_iterator = iter(self._data)

    def restore_dataset(self, saved: dict[str, Any]) -> None:
        """Restore what the dataset drew and counted until the save, which its loader does not report."""
        if saved["dataset"] is not None:
            source.apply(source.unreported_dataset(self._source), saved["dataset"])

    def discard_iterator(self) -> None:
        """Discard an iterator that was made in advance and not used: the next one starts again."""
        self._next_iterator = None

    # --- iterators ---------------------------------------------------------------------------------

    def _wrapped(self, data: Any) -> _Wrapped:
        self._data = _Wrapped(self, data)
        return self._data

    def iterate(self, data: Any) -> Iterator[Any]:
        """Return the iterator that was made in advance, or make one."""
        made, self._next_iterator = self._next_iterator, None
        if made is None:
            made = iter(data)
            position_to_set, self._position_to_set = self._position_to_set, None
            if position_to_set is not None:
                source.set_position(made, position_to_set)
            self._has_begun = True
            # A loader's is not kept: it may have processes that end with it.
            self._iterator = None if self._reports_position else made
        return made  # type: ignore[no-any-return]


class _Wrapped:
    """Takes the place of what Keras iterates over."""

    def __init__(self, position: DataPosition, data: Any) -> None:
        self._position = position
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        return self._position.iterate(self._data)

    def __getattr__(self, name: str) -> Any:
        # Keras 3.12 asks a torch loader how far it reads ahead. Where there is no data yet, nothing is asked for it.
        return getattr(object.__getattribute__(self, "_data"), name)
