"""Position in the validation data: the source's own state, and how often it was iterated over.

A tf.data pipeline that shuffles has another order in each iteration, which depends on the number of iterations before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from types import GeneratorType
from typing import Any

from ckptstore.keras.private import (
    FitLoop,
    restart_validation_data,
    validation_iterator_count,
    validation_leaves_batches,
)
from ckptstore.keras.state import random_state
from ckptstore.training.data import source as data_source


class ValidationData:
    """The validation data of one fit.

    Args:
        loop: The fit; counts how often its validations iterate over the data.
    """

    def __init__(self, loop: FitLoop) -> None:
        self._model = loop.model
        self._source = loop.validation_source
        # What is trained on too is looked at there.
        own = self._source is not None and self._source is not loop.source
        self._tracker = data_source.ChangeTracker(self._source) if own else None
        self._iterator_count = 0
        self._captured: dict[str, Any] | None = None
        self._generators = random_state.GlobalGenerators()
        self._looks_ahead = loop.data.creates_iterators_at_once
        # A thread that is asked for the next epoch while validation runs draws what must not be set back.
        self._is_drawn_from = loop.data.reads_ahead and loop.data.spans_epochs
        self._must_restart = False
        # True if each batch is drawn by a thread that draws more of them than a validation takes.
        self._is_drawn_ahead = False
        self._before_first: dict[str, Any] | None = None
        loop.wrap_method(loop.callbacks, "on_test_begin", self._wrap_test_begin)
        loop.wrap_method(loop.callbacks, "on_test_end", self._wrap_test_end)
        if self._looks_ahead and self._tracker is not None:
            loop.wrap_method(loop.callbacks, "on_test_batch_begin", self._wrap_test_batch_begin)
            loop.wrap_method(loop.callbacks, "on_test_batch_end", self._wrap_test_batch_end)

    def _wrap_test_begin(self, others: Callable[..., None]) -> Callable[..., None]:
        def hook(logs: Any = None) -> None:
            if self._must_restart and self._captured is not None:
                data_source.apply(self._source, self._captured)
                if not self._is_drawn_from:
                    random_state.restore(self._generators)
                restart_validation_data(self._model)
            self._must_restart = False
            others(logs)

        return hook

    def _wrap_test_batch_begin(self, others: Callable[..., None]) -> Callable[..., None]:
        def hook(batch: int, logs: Any = None) -> None:
            others(batch, logs)
            if batch == 0 and not self._is_drawn_ahead and validation_leaves_batches(self._model):
                self._before_first = self._state()

        return hook

    def _wrap_test_batch_end(self, others: Callable[..., None]) -> Callable[..., None]:
        def hook(batch: int, logs: Any = None) -> None:
            before, self._before_first = self._before_first, None
            if before is not None:
                self._is_drawn_ahead = not data_source.same_state(before, self._state())
            others(batch, logs)

        return hook

    def _state(self) -> dict[str, Any] | None:
        return None if self._tracker is None else self._tracker.capture()

    def _wrap_test_end(self, others: Callable[..., None]) -> Callable[..., None]:
        def hook(logs: Any = None) -> None:
            others(logs)
            self._iterator_count += validation_iterator_count(self._model)

        return hook

    def capture(self) -> dict[str, Any]:
        """Return the position, for another process; to be called when the training's batches end."""
        self._captured = self._state()
        if self._looks_ahead:
            self._generators = random_state.capture()
        return {
            "validation": self._captured,
            "validation_made": self._iterator_count,
            "validation_drawn_ahead": self._is_drawn_ahead,
        }

    def go_to(self, place: Mapping[str, Any]) -> None:
        """Go to the position that `capture` returned; checkpoints of earlier versions did not count."""
        if place.get("validation") is not None:
            data_source.apply(self._source, place["validation"])
        before, self._iterator_count = self._iterator_count, place.get("validation_made", 0)
        self._is_drawn_ahead = place.get("validation_drawn_ahead", False)
        # On TensorFlow Keras looks at some batches before its first validation: what that draws was drawn long ago.
        self._must_restart = self._looks_ahead and self._iterator_count > before
        if _is_pipeline(self._source):
            for _ in range(before, self._iterator_count):
                iter(self._source)

    def inexact_reasons(self) -> Iterator[str]:
        """Yield the reasons for which the position may not be exact."""
        if isinstance(self._source, GeneratorType):
            yield "the validation data is a Python generator, which starts again; a PyDataset would continue"
        if self._is_drawn_ahead:
            yield (
                "TensorFlow asks the validation data for more than validation_steps, and it draws for each batch: how "
                "far it was asked before is not known"
            )
        if self._iterator_count and data_source.keeps_workers(self._source):
            yield (
                "the workers of the validation's DataLoader live on from epoch to epoch (persistent_workers), and what "
                "they and their loader have drawn cannot be saved"
            )


def _is_pipeline(source: Any) -> bool:
    data = getattr(sys.modules.get("tensorflow"), "data", None)
    return data is not None and isinstance(source, data.Dataset)
