"""Position of a fit in its training data, and the replay that reaches it in another process.

Keras creates one iterator for each epoch or, with ``steps_per_epoch``, one for several. Its batches depend on the
global generators when Keras creates it and reads its first batch (shuffling), on the source's own state, and on the
number of batches read so far. `DataReplay` works in this order:

1. While training, it records the generators and the source at the start of each epoch, and counts batches.
2. On resume, it restores both, lets Keras create a new iterator, and discards the batches already trained on.
3. Then it restores the generators of the save, which include all that training itself drew.

A source that reports its position (`ckptstore.training.data.loader_position`) needs no replay: it is set to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import keras

from ckptstore.errors import InvalidArgumentError
from ckptstore.keras.private import EpochData, FitLoop
from ckptstore.keras.state import random_state
from ckptstore.keras.state.random_state import GlobalGenerators
from ckptstore.training.data import exactness, owed_reads
from ckptstore.training.data import source as data_source
from ckptstore.training.data.first_batch import FirstBatch, is_other
from ckptstore.training.data.iterations import Iterations, make_again, must_read
from ckptstore.training.data.loader_position import DataPosition
from ckptstore.training.data.replay_target import ReplayResult, ReplayTarget
from ckptstore.training.data.validation import ValidationData

Step = tuple[int, int, Any]
# Batches that workers prefetched for the next epoch are saved only up to this size.
_MAX_QUEUE_NBYTES = 64 << 20


class DataReplay:
    """Counts the batches that a fit reads, and after a resume skips those already trained on.

    Args:
        loop: The fit.
        progress: Called with the index of each skipped batch.
        failed: Called with an error that the data raises, before Keras sees it. Never called on TensorFlow, which
            reads the data inside the compiled step.
        compares: False where other processes have other parts of the data, so that first batches tell nothing.

    Attributes:
        is_skipping: True while Keras runs the one execution that stands for the skipped batches.
    """

    def __init__(
        self,
        loop: FitLoop,
        progress: Callable[[int], None],
        failed: Callable[[Exception], None],
        *,
        compares: bool = True,
    ) -> None:
        self._loop = loop
        self._progress = progress
        self._failed = failed
        self._reads_in_python = keras.backend.backend() != "tensorflow"
        self._tracker = data_source.ChangeTracker(loop.source)
        self._validation = ValidationData(loop)
        self._validation_at_epoch_end: dict[str, Any] = {}
        self._position = DataPosition(loop)
        self._generators_at_start = exactness.generators_at_start(loop)
        self._first_batch = FirstBatch(loop if compares else None)
        self._batches_at_start = self._first_batch.at_start
        self._is_known_to_differ = False
        self._iterator_count = self._iterator_count_at_step = self._iterators_read = 0
        self._epoch_ended = False
        self._is_iterator_new = False
        self._batches_read = 0
        self._generators_at_creation: GlobalGenerators | None = None
        self._generators_at_first_read: GlobalGenerators | None = None
        self._epoch_record: dict[str, Any] = {}
        self._target: ReplayTarget | None = None
        self.is_skipping = False
        loop.data.wrap_iterator_creation(self._wrap_iterator_creation)
        loop.data.wrap_epoch_steps(self._wrap_epoch_steps)

    @property
    def epochs(self) -> int:
        """Total number of epochs: the fit ends before the epoch with this index."""
        return self._loop.epochs

    # --- capture -----------------------------------------------------------------------------------

    def position(self, *, in_epoch: bool) -> dict[str, Any]:
        """Return the position in the data, to be reached in another process; its arrays are copies.

        Args:
            in_epoch: False between epochs: one has ended and the next has not begun.

        Returns:
            Among others ``made`` and ``read`` (number of iterators that were created, and that were read from),
            ``ended`` (True after the epoch's last batch), ``beginning`` and ``first_batches`` (generators and batches
            before the first start's training), ``kept`` (an iterator that spans epochs, or None), and ``first_batch``
            (digest of the iterator's first batch).
        """
        position: dict[str, Any] = {
            "made": self._iterator_count,
            "read": self._iterators_read,
            "ended": False,
            "beginning": self._generators_at_start,
            "first_batches": self._batches_at_start,
            "batches_per_epoch": self._loop.data.batches_per_epoch,
            "batch_size": self._loop.data.batch_size,
            "source_position": None,
            **self._validation.capture(),
            **self._epoch_start_record(),
        }
        if in_epoch:
            position |= {
                **self._epoch_record,
                "made": self._iterator_count_at_step,
                "ended": self._epoch_ended,
            }
            position |= self._validation_at_epoch_end if self._epoch_ended else {}
        spanning = position["kept"]
        position["first_batch"] = self._first_batch.digest if in_epoch or spanning is not None else None
        # The next epoch needs no source position, unless it continues an iterator that was already read from.
        if in_epoch or (spanning is not None and spanning["taken"]):
            position["source_position"] = self._position.capture()
        return position

    def _epoch_start_record(self) -> dict[str, Any]:
        """Return the part of the position that is recorded at the start of each epoch."""
        spanning = None
        source_at_creation, source = self._tracker.capture_both()
        if self._loop.data.spans_epochs and self._loop.data.has_iterator:
            spanning = {
                "when_made": _to_plain(self._generators_at_creation),
                "when_begun": _to_plain(self._generators_at_first_read),
                "source": source_at_creation,
                "taken": self._batches_read,
                "steps_seen": self._loop.data.steps_seen,
            }
        return {
            "source": source,
            "generators": None,
            "kept": spanning,
            "prefetched": self._prefetched(),
            "batches_inferred": self._loop.data.inferred_batches,
        }

    def _prefetched(self) -> list[Any] | None:
        """Return the batches that workers prefetched before the epoch began, in the order of the epoch before.

        None without workers, and if they are too large to save.
        """
        queue = self._loop.data.prefetched
        if queue is None:
            return None
        batches = list(queue)
        arrays = keras.tree.flatten(batches)
        return batches if sum(getattr(array, "nbytes", 0) for array in arrays) <= _MAX_QUEUE_NBYTES else None

    # --- counting ----------------------------------------------------------------------------------

    def _wrap_iterator_creation(self, create: Callable[[], Any]) -> Callable[[], Any]:
        def create_and_count() -> Any:
            self._iterator_count += self._loop.data.creates_iterators_at_once
            self._batches_read = 0
            self._is_iterator_new = True
            self._generators_at_creation, self._generators_at_first_read = random_state.capture(), None
            if self._loop.data.spans_epochs:
                self._tracker.note()
            self._position.discard_iterator()
            self._first_batch.iterator_begins()
            return create()

        return create_and_count

    def _wrap_epoch_steps(
        self, enumerate_batches: Callable[[], Iterator[Step]]
    ) -> Callable[[], Iterator[Step]]:
        def replay_and_count() -> Iterator[Step]:
            target, self._target = self._target, None
            owed_reads.settle(self._loop.source, self._loop.validation_source)
            if target is not None:
                self._restore_epoch_start(target)
            self._epoch_record = self._epoch_start_record() | {
                "generators": _to_plain(random_state.capture())
            }
            self._is_iterator_new = False
            if target is not None and target.position["kept"] is None:
                self._set_source_position(target)
            if target is not None and target.batches == 0 and self._reads_other_data(target):
                target.on_finished(ReplayResult(batches=0, seconds=0.0, is_other_data=True))
            steps = self._count_batches(enumerate_batches())
            return steps if target is None else self._skip_trained_batches(target, steps)

        return replay_and_count

    def _count_batches(self, steps: Iterator[Step]) -> Iterator[Step]:
        self._epoch_ended = False
        for begin, end, batches in steps:
            if self._batches_read == 0:
                self._iterator_count += not self._loop.data.creates_iterators_at_once
                self._iterators_read += 1
                if not self._is_iterator_new:
                    # Keras created this iterator at the end of an epoch, and reads from it only now.
                    self._generators_at_first_read = random_state.capture()
            self._batches_read += self._loop.data.batches_per_execution
            self._iterator_count_at_step = self._iterator_count
            yield begin, end, _ReportingIterator(batches, self._failed) if self._reads_in_python else batches
        # Keras has ended the epoch now. Its `on_epoch_end`, or a new iterator, may have drawn for the next epoch.
        self._epoch_ended = True
        self._validation_at_epoch_end = self._validation.capture()

    # --- resume ------------------------------------------------------------------------------------

    def go_to(self, target: ReplayTarget) -> list[str]:
        """Make the next epoch begin at a position saved by another process.

        Returns:
            The reasons why the resumed run may not be exact.

        Raises:
            InvalidArgumentError: The position lies inside an execution (``steps_per_execution`` has changed), or
                beyond the last batch of an epoch.
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
            exactness.inexact_reasons(
                self._loop, target.position, self._generators_at_start, epoch=target.epoch
            )
        )
        if not reasons and is_other(target.position.get("first_batches"), self._batches_at_start):
            reasons.append(exactness.OTHER_GENERATOR)
        self._is_known_to_differ = bool(reasons)
        reasons += self._validation.inexact_reasons()
        self._generators_at_start = target.position.get("beginning") or self._generators_at_start
        self._batches_at_start = target.position.get("first_batches") or self._batches_at_start
        return reasons

    def end_at(self, position: dict[str, Any]) -> None:
        """Leave the data as a fit that ended at a position leaves it: no batch is left to train on.

        Later fits of the script may use the same data. A tf.data pipeline counts how often it was iterated over.
        """
        self._restore_source(position["source"])
        self._validation.go_to(position)
        if not self._loop.data.order_depends_on_iterators:
            return
        spanning = position["kept"]
        made = _iterations(position) - self._iterations()
        if spanning is not None:
            owed_reads.owe(self._loop.source, partial(_read, self._loop.data, spanning["taken"]))
        elif must_read(self._loop.source, made):
            owed_reads.owe(self._loop.source, partial(_make_again, self._loop, made))
        else:
            _make_again(self._loop, made)

    def _restore_source(self, saved: dict[str, Any] | None) -> None:
        if saved is not None:
            data_source.apply(self._loop.source, saved)

    def _set_source_position(self, target: ReplayTarget) -> None:
        saved = target.position["source_position"]
        if saved is not None:
            self._position.go_to(saved)

    def _restore_epoch_start(self, target: ReplayTarget) -> None:
        """Restore the state at the start of the epoch; if its iterator spans epochs, replay the earlier ones."""
        position = target.position
        spanning = position["kept"]
        self._loop.data.set_inferred_batches(position["batches_inferred"])
        at_epoch_start = _from_plain(position["generators"]) or random_state.capture()
        queue, saved_batches = self._loop.data.prefetched, position["prefetched"]
        if queue is not None and saved_batches is not None:
            queue.clear()
            queue.extend(saved_batches)
        drawn_by_data: Collection[str] = ()
        # The saved count includes the iterator that Keras creates next, if batches were read from it.
        goes_on = spanning is not None and spanning["taken"] > 0
        begun = Iterations(
            created=bool(target.batches or spanning is not None), read=bool(target.batches or goes_on)
        )
        before = _iterations(position) - begun
        if self._loop.data.order_depends_on_iterators:
            _make_again(self._loop, before - self._iterations())
        if spanning is not None:
            self._restore_source(spanning.get("source"))
            self._set_source_position(target)
            drawn_by_data = self._replay_earlier_epochs(
                spanning, positioned=position["source_position"] is not None
            )
            self._restore_source(position["source"])
        random_state.restore(at_epoch_start, leave=drawn_by_data)
        self._iterator_count = position["made"] if spanning is not None else before.created
        self._iterators_read = _iterations(position).read if goes_on else before.read

    def _iterations(self) -> Iterations:
        return Iterations(created=self._iterator_count, read=self._iterators_read)

    def _replay_earlier_epochs(self, spanning: dict[str, Any], *, positioned: bool) -> Collection[str]:
        """Recreate an iterator that spans epochs, and discard the batches of the earlier epochs.

        Args:
            spanning: The saved record of the iterator.
            positioned: True if the source was set to its position: the iterator begins after these batches.

        Returns:
            Names of the generators that the data draws from while it is read.
        """
        at_creation, at_first_read = _from_plain(spanning["when_made"]), _from_plain(spanning["when_begun"])
        if at_creation is not None:
            random_state.restore(at_creation)
        batches = self._loop.data.start_iterator()
        if at_first_read is not None:
            random_state.restore(at_first_read)
        if positioned:
            self._position.make_iterator()
        first = None
        for index in range(0, 0 if positioned else spanning["taken"], self._loop.data.batches_per_execution):
            self._loop.data.discard_batches(batches)
            first = first or random_state.capture()
            self._progress(index)
        self._batches_read, self._generators_at_first_read = spanning["taken"], at_first_read
        self._loop.data.steps_seen = spanning["steps_seen"]
        return self._changed_since((at_first_read or at_creation) if self._loop.data.reads_ahead else first)

    def _changed_since(self, before: GlobalGenerators | None) -> tuple[str, ...]:
        if before is None:
            return ()
        now = random_state.capture()
        return tuple(
            name for name in random_state.names(now) if not random_state.same_state(name, now, before)
        )

    def _skip_trained_batches(self, target: ReplayTarget, steps: Iterator[Step]) -> Iterator[Step]:
        """Skip the batches already trained on, then yield the others."""
        started = time.perf_counter()
        discarded = 0
        # A thread that reads ahead may draw for later batches before the first one arrives. So compare with now.
        first = random_state.capture() if self._loop.data.reads_ahead else None
        source_position = target.position["source_position"]
        ended = target.position.get("ended", False)
        for begin, end, batches in steps:
            if begin >= target.batches:
                yield begin, end, batches
                continue
            if source_position is not None:
                self._position.make_iterator()
            else:
                self._loop.data.discard_batches(batches)
                discarded += self._loop.data.batches_per_execution
            first = first or random_state.capture()
            self._progress(end)
            if end + 1 >= target.batches:
                # Keras needs at least one execution for the epoch's logs: give it one that computes nothing.
                self.is_skipping = True
                yield begin, end, self._loop.skip_execution(target.logs)
                self.is_skipping = False
                if source_position is not None:
                    self._position.restore_dataset(source_position)
                inexact = () if ended else self._restore_generators(target.generators, first)
                seconds = time.perf_counter() - started
                is_other_data = not inexact and self._reads_other_data(target)
                target.on_finished(
                    ReplayResult(
                        batches=discarded, seconds=seconds, inexact=inexact, is_other_data=is_other_data
                    )
                )
        if ended and target.generators is not None:
            # The save was made during validation, after the epoch's last batch.
            random_state.restore(target.generators)

    def _reads_other_data(self, target: ReplayTarget) -> bool:
        """Return True if the data does not begin as it did, and that was not said before."""
        if self._is_known_to_differ or target.position["source_position"] is not None:
            return False
        return is_other(target.position.get("first_batch"), self._first_batch.digest)

    def _restore_generators(self, saved: GlobalGenerators | None, first: GlobalGenerators) -> tuple[str, ...]:
        """Restore the generators of the save, and return the names of those that cannot be exact.

        A generator that changed between two replayed batches is one that the data draws from. If only the data does,
        the replay has brought it to its saved state. If the saved state differs, training drew from it too, and the
        data drew other values in the replay. Where a thread reads ahead, the data's generators stay as they are.

        Args:
            saved: The generators at the save.
            first: The generators after the first batch of the replay; before it where a thread reads ahead.
        """
        if saved is None:
            return ()
        now = random_state.capture()
        drawn_by_data = self._changed_since(first)
        if self._loop.data.reads_ahead:
            random_state.restore(saved, leave=drawn_by_data)
            return ()
        random_state.restore(saved)
        return tuple(name for name in drawn_by_data if not random_state.same_state(name, now, saved))


class _ReportingIterator:
    """Iterator that reports an error of the data before it raises it."""

    __slots__ = ("_batches", "_failed")

    def __init__(self, batches: Iterator[Any], failed: Callable[[Exception], None]) -> None:
        self._batches = batches
        self._failed = failed

    def __iter__(self) -> _ReportingIterator:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._batches)
        except StopIteration:
            raise
        except Exception as error:
            self._failed(error)
            raise


def _read(data: EpochData, number: int) -> None:
    before = random_state.capture()
    batches = data.new_iterator()
    for _ in range(0, number, data.batches_per_execution):
        data.discard_batches(batches)
    random_state.restore(before)


def _iterations(position: dict[str, Any]) -> Iterations:
    # Earlier versions did not count those that were read.
    return Iterations(created=position["made"], read=position.get("read", 0))


def _make_again(loop: FitLoop, iterations: Iterations) -> None:
    data = loop.data
    make_again(
        loop.source,
        iterations,
        data.new_iterator,
        fills_cache=data.keeps_first_order and not data.spans_epochs,
        creates_at_once=data.creates_iterators_at_once,
    )


def _to_plain(generators: GlobalGenerators | None) -> dict[str, Any] | None:
    if generators is None:
        return None
    return {"document": generators.document, "arrays": generators.arrays}


def _from_plain(plain: dict[str, Any] | None) -> GlobalGenerators | None:
    return None if plain is None else GlobalGenerators(plain["document"], plain["arrays"])
