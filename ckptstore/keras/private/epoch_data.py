"""Training data of a running fit, seen through Keras' iterator over an epoch's batches.

Fallback: if the iterator lacks an attribute (`is_supported`), a fit cannot be resumed within an epoch.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import keras

from ckptstore.keras.private.hooks import Hooks

Step = tuple[int, int, Any]

# Attributes that an epoch's iterator must have for its batches to be counted and skipped.
_ITERATOR = ("_enumerate_iterator", "_get_iterator", "_current_iterator", "_steps_seen", "data_adapter")
# Methods by which Keras, on JAX, takes batches ahead of training: in this version, in earlier ones.
_TAKE_AHEAD = ("_one_batch_ahead_iterator", "_prefetch_numpy_iterator")


def is_supported(iterator: Any) -> bool:
    """Return True if Keras' iterator over an epoch has all attributes that are used here."""
    return all(hasattr(iterator, name) for name in _ITERATOR)


class EpochData:
    """Training data of one fit.

    Args:
        iterator: Keras' iterator over the batches of an epoch.
        hooks: The fit's wrapped methods.
    """

    def __init__(self, iterator: Any, hooks: Hooks) -> None:
        self._iterator = iterator
        self._hooks = hooks

    # --- hooks -------------------------------------------------------------------------------------

    def wrap_iterator_creation(self, make: Callable[[Callable[[], Any]], Callable[[], Any]]) -> None:
        """Wrap the method that makes an iterator over the data."""
        self._hooks.wrap_method(self._iterator, "_get_iterator", make)

    def wrap_epoch_steps(
        self, make: Callable[[Callable[[], Iterator[Step]]], Callable[[], Iterator[Step]]]
    ) -> None:
        """Wrap the iteration over an epoch's steps; each step is (first batch, last batch, their data)."""
        self._hooks.wrap_method(self._iterator, "_enumerate_iterator", make)

    # --- counts ------------------------------------------------------------------------------------

    @property
    def has_iterator(self) -> bool:
        """True if there is an iterator that the coming epochs continue with."""
        return self._iterator._current_iterator is not None

    @property
    def steps_seen(self) -> int:
        """Number of batches that Keras has counted of that iterator."""
        return int(self._iterator._steps_seen)

    @steps_seen.setter
    def steps_seen(self, number: int) -> None:
        self._iterator._steps_seen = number

    @property
    def batches_per_execution(self) -> int:
        """Number of batches that one call of the train function takes."""
        return int(self._iterator.steps_per_execution or 1)

    @property
    def batches_per_epoch(self) -> int | None:
        """Number of batches of an epoch, or None if unknown."""
        number = self._iterator.num_batches
        return None if number is None else int(number)

    @property
    def batch_size(self) -> int | None:
        """Number of rows of a batch, or None if unknown."""
        size = getattr(self._iterator.data_adapter, "batch_size", None)
        return size if isinstance(size, int) else None

    @property
    def inferred_batches(self) -> int | None:
        """Number of batches that Keras counted in an earlier epoch; None before that, or if the data has a length."""
        known = self._iterator.data_adapter.num_batches
        return None if known is not None else self._iterator._num_batches

    def set_inferred_batches(self, number: int | None) -> None:
        """Set the number of batches that Keras had counted in another process."""
        if number is not None and self._iterator._num_batches is None:
            self._iterator._num_batches = number

    @property
    def spans_epochs(self) -> bool:
        """True if one pass over the data serves several epochs (``steps_per_epoch``)."""
        return bool(self._iterator.steps_per_epoch)

    @property
    def adapter_name(self) -> str:
        """Name of Keras' class for the kind of data, such as ``"ArrayDataAdapter"``."""
        return type(self._iterator.data_adapter).__name__

    @property
    def reads_ahead(self) -> bool:
        """True if a thread of the pipeline may read more data than the training has used (TensorFlow)."""
        return _is_tensorflow() and self.adapter_name not in ("ArrayDataAdapter", "TFDatasetAdapter")

    @property
    def order_depends_on_iterators(self) -> bool:
        """True if the order of the data depends on how many iterators were made of it before (tf.data)."""
        return self.adapter_name == "TFDatasetAdapter"

    @property
    def creates_iterators_at_once(self) -> bool:
        """True if an iterator over the data is made at once, not with its first batch."""
        return _is_tensorflow()

    @property
    def is_grain(self) -> bool:
        """True if the data is a Grain dataset or loader."""
        return self.adapter_name == "GrainDatasetAdapter"

    @property
    def is_unseeded(self) -> bool:
        """True if TensorFlow shuffles the data without a seed that another process would have."""
        context = sys.modules.get("tensorflow.python.eager.context")
        seed = getattr(context, "global_seed", None)
        if not self.order_depends_on_iterators and not (
            _is_tensorflow() and self.adapter_name == "ArrayDataAdapter"
        ):
            return False
        return seed is not None and seed() is None

    @property
    def prefetched(self) -> deque[Any] | None:
        """Batches that workers made in the previous epoch and Keras keeps for the next one; None without workers."""
        enqueuer = getattr(self._iterator.data_adapter, "enqueuer", None)
        batches = getattr(getattr(enqueuer, "ready_queue", None), "queue", None)
        return batches if isinstance(batches, deque) else None

    def stop_reading_ahead(self) -> bool:
        """Have Keras read a batch only when it trains on it; return True if it does so from now on.

        On an accelerator, JAX then transfers a batch only after the training step on the previous one.
        """
        for name in _TAKE_AHEAD:
            if hasattr(self._iterator, name):
                self._hooks.wrap_method(self._iterator, name, lambda _: iter)
        return not _is_tensorflow()

    def wrap_data(self, make: Callable[[Any], Any]) -> None:
        """Have Keras iterate over what `make` returns for its torch loader or Grain dataset.

        In a Keras that keeps the loader elsewhere, and for other data, `make` is never called.
        """
        adapter, on_torch = self._iterator.data_adapter, keras.backend.backend() == "torch"
        if self.adapter_name == "TorchDataLoaderAdapter" and hasattr(adapter, "_dataloader"):
            self._hooks.replace_attribute(adapter, "_dataloader", make(adapter._dataloader))
        elif self.is_grain and on_torch:
            self._hooks.wrap_method(
                adapter, "get_torch_dataloader", lambda get: lambda: _with_wrapped_dataset(get(), make)
            )
        elif self.is_grain:
            self._hooks.wrap_method(adapter, "get_jax_iterator", lambda get: lambda: make(get()))

    def discard_batches(self, batches: Iterator[Any]) -> bool:
        """Take the batches of one execution from an iterator and drop them; return False if there were none."""
        return len(list(islice(batches, self.batches_per_execution))) > 0

    def new_iterator(self) -> Iterator[Any]:
        """Return a new iterator over the data that Keras does not use."""
        made: Iterator[Any] = iter(self._iterator._get_iterator())
        return made

    def start_iterator(self) -> Iterator[Any]:
        """Return a new iterator over the data, which the coming epochs will continue with."""
        made = self.new_iterator()
        self._iterator._current_iterator = made
        return made

    def symbolic_batch(self) -> Any:
        """Return a symbolic batch if the backend knows it before the first real one (TensorFlow), else None."""
        dataset = getattr(self._iterator, "_distributed_dataset", None)
        return None if dataset is None else keras.tree.map_structure(_symbol, dataset.element_spec)


def _symbol(spec: Any) -> Any:
    return keras.KerasTensor(spec.shape, dtype=keras.backend.standardize_dtype(spec.dtype))


def _with_wrapped_dataset(loader: Any, make: Callable[[Any], Any]) -> Any:
    """Replace the Grain dataset inside Keras' torch loader with what `make` returns; return the loader."""
    if hasattr(loader.dataset, "iterable"):
        loader.dataset.iterable = make(loader.dataset.iterable)
    return loader


def restart_validation_data(model: Any) -> None:
    """Have a validation that is beginning prepare its data once more, as Keras did just before."""
    iterator = getattr(model, "_eval_epoch_iterator", None)
    if iterator is not None:
        iterator.reset()


def validation_iterator_count(model: Any) -> int:
    """Return how many iterators a validation within a fit has made of its data, when it ends.

    After the last batch Keras makes one more that is never used; on TensorFlow it exists at once.
    """
    iterator = getattr(model, "_eval_epoch_iterator", None)
    is_new = getattr(iterator, "_steps_seen", None) == 0
    another = is_new and getattr(iterator, "_current_iterator", None) is not None
    return 1 + (another and _is_tensorflow())


def validation_leaves_batches(model: Any) -> bool:
    """Return True if a validation within a fit uses fewer batches than its data has (``validation_steps``)."""
    iterator = getattr(model, "_eval_epoch_iterator", None)
    steps = getattr(iterator, "steps_per_epoch", None)
    if iterator is None or not steps:
        return False
    per_epoch = iterator.data_adapter.num_batches
    return per_epoch is None or bool(steps < per_epoch)


def _is_tensorflow() -> bool:
    return bool(keras.backend.backend() == "tensorflow")
