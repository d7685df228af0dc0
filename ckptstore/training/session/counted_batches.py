"""Counts the batches of a fit by several processes as they begin, and tells what has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ckptstore.distributed.batch_counts import BatchCounts, EpochBatches
from ckptstore.keras.private import FitLoop
from ckptstore.training.session.hooks import tell_first
from ckptstore.training.session.position import BatchPosition

Step = tuple[int, int, Iterator[Any]]


def count_batches(loop: FitLoop, position: BatchPosition, counts: BatchCounts) -> None:
    """Count until the loop is released; what other processes count is compared elsewhere.

    A batch has begun when its data is there. Keras' hooks come before, also for a batch that the data does not have.

    Args:
        loop: Keras' loop.
        position: The position of the fit, for an epoch of which nothing was left after a resume.
        counts: The counts of this fit.
    """

    def training_ends() -> None:
        if not counts.current.training:
            counts.current.training = position.batches
        counts.training_ends()

    def validation_begins(logs: Any = None) -> None:
        training_ends()
        loop.wrap_validation_steps(of(_ValidationBatches))

    def epoch_ends(epoch: int, logs: Any = None) -> None:
        training_ends()
        counts.epoch_ends()

    def of(
        kind: type[_TrainingBatches],
    ) -> Callable[[Callable[[], Iterator[Step]]], Callable[[], Iterator[Step]]]:
        return lambda enumerate_batches: lambda: _counted(enumerate_batches(), kind, counts.current)

    loop.data.wrap_epoch_steps(of(_TrainingBatches))
    loop.wrap_method(
        loop.callbacks,
        "on_epoch_begin",
        tell_first(lambda epoch, logs=None: counts.begin_epoch(epoch)),
    )
    loop.wrap_method(loop.callbacks, "on_test_begin", tell_first(validation_begins))
    loop.wrap_method(loop.callbacks, "on_epoch_end", tell_first(epoch_ends))


def _counted(steps: Iterator[Step], kind: type[_TrainingBatches], epoch: EpochBatches) -> Iterator[Step]:
    for begin, end, batches in steps:
        yield begin, end, kind(batches, epoch, begin)


class _TrainingBatches:
    """The batches of one execution of an epoch's training, counted as they are read.

    Args:
        batches: The batches.
        epoch: The epoch's counts.
        begun: How many batches of the epoch have begun before.
    """

    __slots__ = ("_batches", "_begun", "_epoch")

    def __init__(self, batches: Iterator[Any], epoch: EpochBatches, begun: int) -> None:
        self._batches = batches
        self._epoch = epoch
        self._begun = begun

    def __iter__(self) -> _TrainingBatches:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._begun += 1
        self._epoch.training = self._begun
        return batch


class _ValidationBatches(_TrainingBatches):
    """The same of its validation."""

    __slots__ = ()

    def __next__(self) -> Any:
        batch = next(self._batches)
        self._begun += 1
        self._epoch.validation = self._begun
        return batch
