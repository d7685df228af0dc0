"""Position of a fit in its data, and the replay by which another process reaches it again.

A data set is iterated over by iterators: one for each epoch, or with ``steps_per_epoch`` one for several. What an
iterator yields is decided by the random generators when it is made and first asked (the order of shuffled data),
by what the source itself remembers, and by how many batches were taken. So the generators are recorded when an epoch's
iteration begins, and to get there again they are set back, a new iterator is made, and the batches that were trained
on are taken from it and dropped. Then the generators are set to where they were at the save: what training drew from
them meanwhile need not be drawn again.

A source that reports its own position (`ckptstore.training.data.loader_position`) is set there instead; nothing is
replayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras

from ckptstore.errors import InvalidArgumentError
from ckptstore.keras.private import FitLoop
from ckptstore.keras.state import random_state
from ckptstore.keras.state.random_state import GlobalGenerators
from ckptstore.training.data import exactness
from ckptstore.training.data import source as data_source
from ckptstore.training.data.loader_position import DataPosition
from ckptstore.training.data.validation import ValidationData

Step = tuple[int, int, Any]
# Batches that wait in a queue from one epoch to the next are saved up to so many bytes.
_MOST_PREFETCHED = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """The outcome of a replay.

    Attributes:
        batches: Batches taken and dropped.
        seconds: How long that took.
        inexact: Global generators that both the data and the training draw from during an epoch, so that a replay
            without training draws other values.
    """

    batches: int
    seconds: float
    inexact: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class ReplayTarget:
    """The position to go to, as `DataReplay.position` returned it, with the state at the save.

    Attributes:
        position: The saved position.
        epoch: The epoch to resume with.
        batches: Batches of the epoch that are already trained; 0 at its beginning.
        generators: The global generators at the save.
        logs: The logs of the last of these batches.
        on_finished: Called when the next batch is the first to be trained on.
    """

    position: dict[str, Any]
    epoch: int
    batches: int
    generators: GlobalGenerators | None
    logs: dict[str, Any] = field(default_factory=dict)
    on_finished: Callable[[ReplayResult], None]


class DataReplay:
    """Counts the batches that one fit takes from its data, and skips those that were trained before a resume.

    Args:
        loop: The fit.
        progress: Called with the index of each batch that is skipped.
        failed: Called with an error of the data in place of a batch, before Keras sees it. On TensorFlow the
            data is read inside the compiled step, and this is not called.
    """

    def __init__(
        self, loop: FitLoop, progress: Callable[[int], None], failed: Callable[[Exception], None]
    ) -> None:
        self._loop = loop
        self._progress = progress
        self._failed = failed
        self._is_asked_in_python = keras.backend.backend() != "tensorflow"
        self._tracker = data_source.ChangeTracker(loop.source)
        self._validation = ValidationData(loop)
        self._validation_at_end: dict[str, Any] = {}
        self._position = DataPosition(loop)
        self._beginning = exactness.generators_at_start(loop)
        self._iterator_count = self._iterator_count_at_step = 0
        self._ended = False
        self._is_iterator_new = False
        self._taken = 0
        self._generators_when_made: GlobalGenerators | None = None
        self._generators_when_begun: GlobalGenerators | None = None
        self._epoch: dict[str, Any] = {}
        self._target: ReplayTarget | None = None
        self.is_skipping = False
        loop.data.wrap_iterator_creation(self._wrap_iterator_creation)
        loop.data.wrap_epoch_steps(self._wrap_epoch_steps)

    @property
    def epochs(self) -> int:
        """The epoch before which the fit ends."""
        return self._loop.epochs

    # --- what is saved -----------------------------------------------------------------------------

    def position(self, *, in_epoch: bool) -> dict[str, Any]:
        """Return the position in the data, for another process; arrays in it are copies.

        Args:
            in_epoch: False at an epoch's end, when the next one has not begun.
        """
        place: dict[str, Any] = {
            "made": self._iterator_count,
            "ended": False,
            "beginning": self._beginning,
            "batches_per_epoch": self._loop.data.batches_per_epoch,
            "batch_size": self._loop.data.batch_size,
            "source_position": None,
            **self._validation.capture(),
            **self._between_epochs(),
        }
        if in_epoch:
            place |= {**self._epoch, "made": self._iterator_count_at_step, "ended": self._ended}
            place |= self._validation_at_end if self._ended else {}
        kept = place["kept"]
        # An epoch begins with a new iterator, unless one spans epochs: not one that was made only now.
        if in_epoch or (kept is not None and kept["taken"]):
            place["source_position"] = self._position.capture()
        return place

    def _between_epochs(self) -> dict[str, Any]:
        """Return the part that is recorded at the beginning of each epoch."""
        kept = None
        when_made, source = self._tracker.capture_both()
        if self._loop.data.spans_epochs and self._loop.data.has_iterator:
            kept = {
                "when_made": _plain(self._generators_when_made),
                "when_begun": _plain(self._generators_when_begun),
                "source": when_made,
                "taken": self._taken,
                "steps_seen": self._loop.data.steps_seen,
            }
        return {
            "source": source,
            "generators": None,
            "kept": kept,
            "prefetched": self._prefetched(),
            "batches_inferred": self._loop.data.inferred_batches,
        }

    def _prefetched(self) -> list[Any] | None:
        """Return what workers made for an epoch before it began: from the order of the one before."""
        waiting = self._loop.data.prefetched
        if waiting is None:
            return None
        batches = list(waiting)
        arrays = keras.tree.flatten(batches)
        return batches if sum(getattr(array, "nbytes", 0) for array in arrays) <= _MOST_PREFETCHED else None

    # --- counting ----------------------------------------------------------------------------------

    def _wrap_iterator_creation(self, make: Callable[[], Any]) -> Callable[[], Any]:
        def counted() -> Any:
            self._iterator_count += self._loop.data.creates_iterators_at_once
            self._taken = 0
            self._is_iterator_new = True
            self._generators_when_made, self._generators_when_begun = random_state.capture(), None
            if self._loop.data.spans_epochs:
                self._tracker.note()
            self._position.discard_iterator()
            return make()

        return counted

    def _wrap_epoch_steps(
        self, enumerate_batches: Callable[[], Iterator[Step]]
    ) -> Callable[[], Iterator[Step]]:
        def counted() -> Iterator[Step]:
            target, self._target = self._target, None
            if target is not None:
                self._go_to_epoch(target)
            self._epoch = self._between_epochs() | {"generators": _plain(random_state.capture())}
            self._is_iterator_new = False
            if target is not None and target.position["kept"] is None:
                self._go_to_source_position(target)
            steps = self._counted(enumerate_batches())
            return steps if target is None else self._after_skipping(target, steps)

        return counted

    def _counted(self, steps: Iterator[Step]) -> Iterator[Step]:
        self._ended = False
        for begin, end, batches in steps:
            if self._taken == 0:
                self._iterator_count += not self._loop.data.creates_iterators_at_once
                if not self._is_iterator_new:
                    # Made at the end of an epoch, and asked only now.
                    self._generators_when_begun = random_state.capture()
            self._taken += self._loop.data.batches_per_execution
            self._iterator_count_at_step = self._iterator_count
            yield begin, end, _ReportingErrors(batches, self._failed) if self._is_asked_in_python else batches
        # What Keras does at the end of an epoch's batches is done: it may have drawn for the next one.
        self._ended = True
        self._validation_at_end = self._validation.capture()

    # --- going there -------------------------------------------------------------------------------

    def go_to(self, target: ReplayTarget) -> list[str]:
        """Let the next epoch begin at another process' position; returns the reasons for which it may not be exact.

        Raises:
            InvalidArgumentError: The batches of one execution were counted otherwise then.
        """
        per_execution = self._loop.data.batches_per_execution
        per_epoch = self._loop.data.batches_per_epoch
        if target.batches % per_execution and target.batches != per_epoch:
            raise InvalidArgumentError(
                argument="steps_per_execution",
                value=per_execution,
                reason=f"the run was saved after batch {target.batches} of an epoch, inside an execution",
                hint="compile with the steps_per_execution that it was saved with",
            )
        if per_epoch is not None and target.batches > per_epoch:
            raise InvalidArgumentError(
                argument="x",
                value=f"{per_epoch} batches per epoch",
                reason=f"the run was saved after batch {target.batches} of an epoch",
                hint="train on the data, and with the batch_size, that it was saved with",
            )
        self._target = target
        self._restore_source(target.position["source"])
        self._validation.go_to(target.position)
        reasons = list(
            exactness.inexact_reasons(self._loop, target.position, self._beginning, epoch=target.epoch)
        )
        reasons += self._validation.inexact_reasons()
        self._beginning = target.position.get("beginning") or self._beginning
        return reasons

    def _restore_source(self, saved: dict[str, Any] | None) -> None:
        if saved is not None:
            data_source.apply(self._loop.source, saved)

    def _go_to_source_position(self, target: ReplayTarget) -> None:
        saved = target.position["source_position"]
        if saved is not None:
            self._position.go_to(saved)

    def _go_to_epoch(self, target: ReplayTarget) -> None:
        """Go to where the epoch began; batches of earlier epochs are taken from an iterator that spans them."""
        place = target.position
        kept = place["kept"]
        self._loop.data.set_inferred_batches(place["batches_inferred"])
        begun = _generators(place["generators"]) or random_state.capture()
        waiting, before = self._loop.data.prefetched, place["prefetched"]
        if waiting is not None and before is not None:
            waiting.clear()
            waiting.extend(before)
        own: Collection[str] = ()
        # The iterator that is made next is one of those that were counted, if batches were taken from it.
        made = place["made"] - bool(target.batches or kept)
        if self._loop.data.order_depends_on_iterators:
            self._make_iterators(made - self._iterator_count)
        if kept is not None:
            self._restore_source(kept.get("source"))
            self._go_to_source_position(target)
            own = self._replay_earlier_epochs(kept, positioned=place["source_position"] is not None)
            self._restore_source(place["source"])
        random_state.restore(begun, leave=own)
        self._iterator_count = place["made"] if kept is not None else made

    def _make_iterators(self, number: int) -> None:
        for _ in range(number):
            iterator = self._loop.data.new_iterator()
            if not self._loop.data.creates_iterators_at_once:
                next(iterator, None)

    def _replay_earlier_epochs(self, kept: dict[str, Any], *, positioned: bool) -> Collection[str]:
        """Take the batches of earlier epochs; returns the generators that the data draws from meanwhile.

        Args:
            kept: The record of the iterator.
            positioned: True if it begins after these batches.
        """
        made, begun = _generators(kept["when_made"]), _generators(kept["when_begun"])
        if made is not None:
            random_state.restore(made)
        batches = self._loop.data.start_iterator()
        if begun is not None:
            random_state.restore(begun)
        if positioned:
            self._position.make_iterator()
        first = None
        for index in range(0, 0 if positioned else kept["taken"], self._loop.data.batches_per_execution):
            self._loop.data.discard_batches(batches)
            first = first or random_state.capture()
            self._progress(index)
        self._taken, self._generators_when_begun = kept["taken"], begun
        self._loop.data.steps_seen = kept["steps_seen"]
        return self._changed_since((begun or made) if self._loop.data.reads_ahead else first)

    def _changed_since(self, before: GlobalGenerators | None) -> tuple[str, ...]:
        if before is None:
            return ()
        now = random_state.capture()
        return tuple(
            name for name in random_state.names(now) if not random_state.same_state(name, now, before)
        )

    def _after_skipping(self, target: ReplayTarget, steps: Iterator[Step]) -> Iterator[Step]:
        """Skip the batches that are already trained, then yield the others."""
        began = time.perf_counter()
        taken = 0
        # If a thread reads ahead, draws for the first batch cannot be told apart from those for the next.
        first = random_state.capture() if self._loop.data.reads_ahead else None
        position = target.position["source_position"]
        ended = target.position.get("ended", False)
        for begin, end, batches in steps:
            if begin >= target.batches:
                yield begin, end, batches
                continue
            if position is not None:
                self._position.make_iterator()
            else:
                self._loop.data.discard_batches(batches)
                taken += self._loop.data.batches_per_execution
            first = first or random_state.capture()
            self._progress(end)
            if end + 1 >= target.batches:
                # What Keras makes of the epoch's logs needs one execution at least.
                self.is_skipping = True
                yield begin, end, self._loop.skip_execution(target.logs)
                self.is_skipping = False
                if position is not None:
                    self._position.restore_dataset(position)
                inexact = () if ended else self._set_generators(target.generators, first)
                seconds = time.perf_counter() - began
                target.on_finished(ReplayResult(batches=taken, seconds=seconds, inexact=inexact))
        if ended and target.generators is not None:
            # Saved during a validation, after the end of the batches.
            random_state.restore(target.generators)

    def _set_generators(self, saved: GlobalGenerators | None, first: GlobalGenerators) -> tuple[str, ...]:
        """Restore the generators of the save; returns the names of those that cannot be exact.

        Those that the data has drawn from between two batches are its own, and are in the right state. If training drew
        from them too, the saved state differs; after a replay without training they are then in another state.

        Args:
            saved: The generators at the save.
            first: The generators after the first batch of the replay.
        """
        if saved is None:
            return ()
        now = random_state.capture()
        own = self._changed_since(first)
        if self._loop.data.reads_ahead:
            random_state.restore(saved, leave=own)
            return ()
        random_state.restore(saved)
        return tuple(name for name in own if not random_state.same_state(name, now, saved))


class _ReportingErrors:
    """An iterator whose errors are reported before they are raised."""

    __slots__ = ("_batches", "_failed")

    def __init__(self, batches: Iterator[Any], failed: Callable[[Exception], None]) -> None:
        self._batches = batches
        self._failed = failed

    def __iter__(self) -> _ReportingErrors:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._batches)
        except StopIteration:
            raise
        except Exception as error:
            self._failed(error)
            raise


def _plain(generators: GlobalGenerators | None) -> dict[str, Any] | None:
    if generators is None:
        return None
    return {"document": generators.document, "arrays": generators.arrays}


def _generators(plain: dict[str, Any] | None) -> GlobalGenerators | None:
    return None if plain is None else GlobalGenerators(plain["document"], plain["arrays"])
