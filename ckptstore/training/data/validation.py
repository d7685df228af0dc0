"""Position in the validation data: the source's own state, and the number of iterators created over it.

`ValidationData` counts the iterators through the callbacks' test hooks, and captures the source at the end of an
epoch's training batches. On resume it restores the source. A tf.data pipeline that shuffles has a new order in each
iteration, which depends on the iterators before: `ckptstore.training.data.iterations` makes them again. On TensorFlow
it also restores the state again when the first validation begins, and restarts Keras' iterator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from types import GeneratorType
from typing import Any

from ckptstore.keras.private import (
    FitLoop,
    keeps_first_order,
    ordered_stages,
    repeats_ordered_stage,
    restart_validation_data,
    validation_iterator_count,
    validation_leaves_batches,
)
from ckptstore.keras.state import random_state
from ckptstore.training.data import source as data_source
from ckptstore.training.data.iterations import Iterations, make_again


class ValidationData:
    """Validation data of one fit.

    Args:
        loop: The fit. Its callbacks' test hooks are wrapped to count the iterators over the data.
    """

    def __init__(self, loop: FitLoop) -> None:
        self._model = loop.model
        self._source = loop.validation_source
        self._trained_on = loop.source if loop.data.spans_epochs else None
        # `DataReplay` tracks a source that is also trained on.
        is_separate = self._source is not None and self._source is not loop.source
        self._tracker = data_source.ChangeTracker(self._source) if is_separate else None
        self._is_shared = self._source is not None and not is_separate
        self._iterations = Iterations(created=0, read=0)
        # True if a validation has read all of the data.
        self._was_read_whole = False
        self._source_state: dict[str, Any] | None = None
        self._generators = random_state.GlobalGenerators()
        self._creates_iterators_at_once = loop.data.creates_iterators_at_once
        # A thread then reads training data for the next epoch during validation: its draws must not be undone.
        self._training_reads_ahead = loop.data.reads_ahead and loop.data.spans_epochs
        self._must_restart = False
        # True if the source changes with each batch, and a thread reads more batches than validation_steps.
        self._reads_past_steps = False
        self._state_before_first_batch: dict[str, Any] | None = None
        loop.wrap_method(loop.callbacks, "on_test_begin", self._wrap_test_begin)
        loop.wrap_method(loop.callbacks, "on_test_end", self._wrap_test_end)
        if self._creates_iterators_at_once and self._tracker is not None:
            loop.wrap_method(loop.callbacks, "on_test_batch_begin", self._wrap_test_batch_begin)
            loop.wrap_method(loop.callbacks, "on_test_batch_end", self._wrap_test_batch_end)

    def _wrap_test_begin(self, call_hooks: Callable[..., None]) -> Callable[..., None]:
        def hook(logs: Any = None) -> None:
            if self._must_restart and self._source_state is not None:
                data_source.apply(self._source, self._source_state)
                if not self._training_reads_ahead:
                    random_state.restore(self._generators)
                restart_validation_data(self._model)
            self._must_restart = False
            call_hooks(logs)

        return hook

    def _wrap_test_batch_begin(self, call_hooks: Callable[..., None]) -> Callable[..., None]:
        def hook(batch: int, logs: Any = None) -> None:
            call_hooks(batch, logs)
            if batch == 0 and not self._reads_past_steps and validation_leaves_batches(self._model):
                self._state_before_first_batch = self._capture_source()

        return hook

    def _wrap_test_batch_end(self, call_hooks: Callable[..., None]) -> Callable[..., None]:
        def hook(batch: int, logs: Any = None) -> None:
            before, self._state_before_first_batch = self._state_before_first_batch, None
            if before is not None:
                self._reads_past_steps = not data_source.same_state(before, self._capture_source())
            call_hooks(batch, logs)

        return hook

    def _capture_source(self) -> dict[str, Any] | None:
        return None if self._tracker is None else self._tracker.capture()

    def _wrap_test_end(self, call_hooks: Callable[..., None]) -> Callable[..., None]:
        def hook(logs: Any = None) -> None:
            call_hooks(logs)
            made = Iterations(created=validation_iterator_count(self._model), read=1)
            self._iterations += made
            self._was_read_whole |= not validation_leaves_batches(self._model)

        return hook

    def capture(self) -> dict[str, Any]:
        """Return the position, to be reached in another process; call it when an epoch's training batches end."""
        self._source_state = self._capture_source()
        if self._creates_iterators_at_once:
            self._generators = random_state.capture()
        return {
            "validation": self._source_state,
            "validation_made": self._iterations.created,
            "validation_read": self._iterations.read,
            "validation_whole": self._was_read_whole,
            "validation_drawn_ahead": self._reads_past_steps,
        }

    def go_to(self, position: Mapping[str, Any]) -> None:
        """Restore a position that `capture` returned; checkpoints of earlier versions lack the counts."""
        if position.get("validation") is not None:
            data_source.apply(self._source, position["validation"])
        before = self._iterations
        # Earlier versions did not count those that were read.
        self._iterations = Iterations(
            created=position.get("validation_made", 0), read=position.get("validation_read", 0)
        )
        missing = self._iterations - before
        self._reads_past_steps = position.get("validation_drawn_ahead", False)
        # On TensorFlow, Keras reads some batches before its first validation. The saved run did that long before
        # the save: these draws must be undone.
        self._must_restart = self._creates_iterators_at_once and missing.created > 0
        self._was_read_whole = position.get("validation_whole", True)
        if _is_tf_dataset(self._source):
            self._make_again(missing)

    def _make_again(self, missing: Iterations) -> None:
        if not self._was_read_whole:
            # It may have no end.
            missing = Iterations(created=missing.created, read=0)
        is_whole = self._was_read_whole or self._is_shared
        make_again(
            self._source,
            missing,
            lambda: iter(self._source),
            fills_cache=is_whole and keeps_first_order(self._source),
            creates_at_once=True,
        )

    def inexact_reasons(self) -> Iterator[str]:
        """Yield the reasons why the position may not be exact."""
        if isinstance(self._source, GeneratorType):
            yield "the validation data is a Python generator, which starts again; a PyDataset would continue"
        if self._reads_past_steps:
            yield (
                "TensorFlow asks the validation data for more than validation_steps, and it draws for each batch: how "
                "far it was asked before is not known"
            )
        if self._iterations.read and not self._was_read_whole and repeats_ordered_stage(self._source):
            yield (
                "the validation data repeats a part that it shuffles, and TensorFlow asks for more of it than "
                "validation_steps: in which order it goes on is not known"
            )
        if self._iterations.created and self._shuffles_with_training():
            yield (
                "the training data repeats a part that it shuffles, and the validation data is made of that part too: "
                "in which order they shared it is not known; shuffle the training data after it was split off"
            )
        if self._iterations.created and data_source.keeps_workers(self._source):
            yield (
                "the workers of the validation's DataLoader live on from epoch to epoch (persistent_workers), and what "
                "they and their loader have drawn cannot be saved"
            )

    def _shuffles_with_training(self) -> bool:
        """Return True if the one iterator over the training data and the validations advance the same shuffling."""
        if self._trained_on is None or self._is_shared or not repeats_ordered_stage(self._trained_on):
            return False
        return not ordered_stages(self._trained_on).keys().isdisjoint(ordered_stages(self._source))


def _is_tf_dataset(source: Any) -> bool:
    data = getattr(sys.modules.get("tensorflow"), "data", None)
    return data is not None and isinstance(source, data.Dataset)
