"""Where a source that can tell its own position stands, and how an iterator over it begins there.

A loader is asked itself (torchdata's StatefulDataLoader); of a Grain dataset the iterators are asked, which Keras
makes inside of itself: so what Keras iterates over is overlaid, and the iterator that was made last is known. What a
loader says is not used where it would not be all: its workers draw random numbers, and of these it says nothing unless
its dataset does. Nor is it used at an epoch's end, where loaders begin anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptstore.keras.private import FitLoop
from ckptstore.training.data import source

# What a checkpoint says that says nothing of the data: an epoch's beginning can be reached from it all the same.
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
        loop: The fit; what it iterates over is overlaid until it is released.
    """

    def __init__(self, loop: FitLoop) -> None:
        self._source = loop.source
        self._is_asked_itself = source.tells_position(loop.source)
        self._data: _Overlaid | None = None
        self._iterator: Any = None
        self._waiting: Any = None
        self._ready: Any = None
        self._has_begun = False
        self._is_known = (self._is_asked_itself or loop.data.is_grain) and loop.data.stop_reading_ahead()
        if self._is_known:
            loop.data.wrap_data(self._overlaid)

    def capture(self) -> dict[str, Any] | None:
        """Return where the data stands behind the batch that was taken last; None where nobody can tell.

        Raises:
            Exception: What the source's own method raises.
        """
        holder = self._source if self._is_asked_itself else self._iterator
        if not self._is_known or holder is None:
            return None
        dataset = source.untold_dataset(self._source)
        return {"own": source.position(holder), "dataset": source.capture(dataset)}

    # --- going there -------------------------------------------------------------------------------

    def go_to(self, saved: dict[str, Any]) -> None:
        """Let the iterator that is made next begin at a position.

        Raises:
            Exception: What the source's own method raises.
        """
        self._has_begun, self._ready = False, None
        if self._is_asked_itself:
            source.set_position(self._source, saved["own"])
        else:
            self._waiting = saved["own"]

    def begin(self) -> None:
        """Make that iterator now, if Keras leaves it to the first batch: what that draws is drawn before it."""
        if not self._has_begun and self._data is not None:
            self._ready = iter(self._data)

    def arrive(self, saved: dict[str, Any]) -> None:
        """Put back what the dataset drew and counted until the save, of which its loader says nothing."""
        if saved["dataset"] is not None:
            source.apply(source.untold_dataset(self._source), saved["dataset"])

    def renew(self) -> None:
        """Forget an iterator that was made ready and that nobody asked for: the next one begins anew."""
        self._ready = None

    # --- iterators ---------------------------------------------------------------------------------

    def _overlaid(self, data: Any) -> _Overlaid:
        self._data = _Overlaid(self, data)
        return self._data

    def iterate(self, data: Any) -> Iterator[Any]:
        """Return the iterator that was made ready, or make one."""
        made, self._ready = self._ready, None
        if made is None:
            made = iter(data)
            waiting, self._waiting = self._waiting, None
            if waiting is not None:
                source.set_position(made, waiting)
            self._has_begun = True
            # A loader's is not kept: it may have processes that end with it.
            self._iterator = None if self._is_asked_itself else made
        return made  # type: ignore[no-any-return]


class _Overlaid:
    """In the place of what Keras iterates over."""

    def __init__(self, position: DataPosition, data: Any) -> None:
        self._position = position
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        return self._position.iterate(self._data)

    def __getattr__(self, name: str) -> Any:
        # Keras 3.12 asks a torch loader how far it reads ahead. Where there is no data yet, nothing is asked for it.
        return getattr(object.__getattribute__(self, "_data"), name)
