"""The data of a fit as Keras' iterator over an epoch's batches has it.

Fallback: where the iterator lacks what is needed (`is_supported`), a fit is none that can be gone on with in an epoch.
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

# What an epoch's iterator must have for its batches to be counted and passed over.
_ITERATOR = ("_enumerate_iterator", "_get_iterator", "_current_iterator", "_steps_seen", "data_adapter")
# With which Keras, on JAX, takes batches ahead of training: of this version, of earlier ones.
_TAKE_AHEAD = ("_one_batch_ahead_iterator", "_prefetch_numpy_iterator")


def is_supported(iterator: Any) -> bool:
    """Return whether Keras' iterator over an epoch has what is used of it."""
    return all(hasattr(iterator, name) for name in _ITERATOR)


class EpochData:
    """What one fit trains on.

    Args:
        iterator: Keras' iterator over the batches of an epoch.
        hooks: The fit's.
    """

    def __init__(self, iterator: Any, hooks: Hooks) -> None:
        self._iterator = iterator
        self._hooks = hooks

    # --- hooks -------------------------------------------------------------------------------------

    def wrap_iterator_creation(self, make: Callable[[Callable[[], Any]], Callable[[], Any]]) -> None:
        """Lay a hook over the making of an iterator over the data."""
        self._hooks.wrap_method(self._iterator, "_get_iterator", make)

    def wrap_epoch_steps(
        self, make: Callable[[Callable[[], Iterator[Step]]], Callable[[], Iterator[Step]]]
    ) -> None:
        """Lay a hook over the going through an epoch's steps: first batch, last batch, and the batches of each."""
        self._hooks.wrap_method(self._iterator, "_enumerate_iterator", make)

    # --- counts ------------------------------------------------------------------------------------

    @property
    def has_iterator(self) -> bool:
        """Whether there is an iterator that the coming epochs go on with."""
        return self._iterator._current_iterator is not None

    @property
    def steps_seen(self) -> int:
        """How many batches Keras has counted of it."""
        return int(self._iterator._steps_seen)

    @steps_seen.setter
    def steps_seen(self, number: int) -> None:
        self._iterator._steps_seen = number

    @property
    def batches_per_execution(self) -> int:
        """How many batches one call of the train function takes."""
        return int(self._iterator.steps_per_execution or 1)

    @property
    def batches_per_epoch(self) -> int | None:
        """How many batches an epoch has, or None where that is not known."""
        number = self._iterator.num_batches
        return None if number is None else int(number)

    @property
    def batch_size(self) -> int | None:
        """How many rows a batch has, or None where that is not known."""
        size = getattr(self._iterator.data_adapter, "batch_size", None)
        return size if isinstance(size, int) else None

    @property
    def inferred_batches(self) -> int | None:
        """How many batches an epoch has by what Keras saw of an earlier one; None where it has seen none, or knew."""
        known = self._iterator.data_adapter.num_batches
        return None if known is not None else self._iterator._num_batches

    def set_inferred_batches(self, number: int | None) -> None:
        """Have Keras ask for as many as it had inferred in another process."""
        if number is not None and self._iterator._num_batches is None:
            self._iterator._num_batches = number

    @property
    def spans_epochs(self) -> bool:
        """Whether one pass over the data serves several epochs (``steps_per_epoch``)."""
        return bool(self._iterator.steps_per_epoch)

    @property
    def adapter_name(self) -> str:
        """Name of Keras' class for the kind of data, such as ``"ArrayDataAdapter"``."""
        return type(self._iterator.data_adapter).__name__

    @property
    def reads_ahead(self) -> bool:
        """Whether a thread of the pipeline may ask the data for more than the training has had (TensorFlow)."""
        return _is_tensorflow() and self.adapter_name not in ("ArrayDataAdapter", "TFDatasetAdapter")

    @property
    def order_depends_on_iterators(self) -> bool:
        """Whether the order of the data depends on how many iterators were made of it before (tf.data)."""
        return self.adapter_name == "TFDatasetAdapter"

    @property
    def creates_iterators_at_once(self) -> bool:
        """Whether an iterator over the data is made when it is asked for, not with its first batch."""
        return _is_tensorflow()

    @property
    def is_grain(self) -> bool:
        """Whether the data is a Grain dataset or loader."""
        return self.adapter_name == "GrainDatasetAdapter"

    @property
    def is_unseeded(self) -> bool:
        """Whether TensorFlow draws the order of shuffled data from no seed that another process would have."""
        context = sys.modules.get("tensorflow.python.eager.context")
        seed = getattr(context, "global_seed", None)
        if not self.order_depends_on_iterators and not (
            _is_tensorflow() and self.adapter_name == "ArrayDataAdapter"
        ):
            return False
        return seed is not None and seed() is None

    @property
    def prefetched(self) -> deque[Any] | None:
        """Batches that workers made in the epoch before and Keras keeps for the next one; None without workers."""
        enqueuer = getattr(self._iterator.data_adapter, "enqueuer", None)
        batches = getattr(getattr(enqueuer, "ready_queue", None), "queue", None)
        return batches if isinstance(batches, deque) else None

    def stop_reading_ahead(self) -> bool:
        """Have Keras ask the data for a batch only when it trains on it; returns whether it does.

        On an accelerator JAX's transfer of a batch then waits for the training on the one before.
        """
        for name in _TAKE_AHEAD:
            if hasattr(self._iterator, name):
                self._hooks.wrap_method(self._iterator, name, lambda _: iter)
        return not _is_tensorflow()

    def wrap_data(self, make: Callable[[Any], Any]) -> None:
        """Have Keras iterate over what `make` returns, given the torch loader or Grain dataset that it would.

        In a Keras that keeps it elsewhere, and for other data, `make` is never called.
        """
        adapter, on_torch = self._iterator.data_adapter, keras.backend.backend() == "torch"
        if self.adapter_name == "TorchDataLoaderAdapter" and hasattr(adapter, "_dataloader"):
            self._hooks.replace_attribute(adapter, "_dataloader", make(adapter._dataloader))
        elif self.is_grain and on_torch:
            self._hooks.wrap_method(
                adapter, "get_torch_dataloader", lambda get: lambda: _overlaid_inside(get(), make)
            )
        elif self.is_grain:
            self._hooks.wrap_method(adapter, "get_jax_iterator", lambda get: lambda: make(get()))

    def discard_batches(self, batches: Iterator[Any]) -> bool:
        """Take from an iterator what one execution takes, and drop it; returns whether there was any."""
        return len(list(islice(batches, self.batches_per_execution))) > 0

    def new_iterator(self) -> Iterator[Any]:
        """Make an iterator over the data that Keras does not know of."""
        made: Iterator[Any] = iter(self._iterator._get_iterator())
        return made

    def start_iterator(self) -> Iterator[Any]:
        """Make the iterator that the coming epochs will go on with."""
        made = self.new_iterator()
        self._iterator._current_iterator = made
        return made

    def symbolic_batch(self) -> Any:
        """Return a symbolic batch, where the backend knows of one before the first (TensorFlow); else None."""
        dataset = getattr(self._iterator, "_distributed_dataset", None)
        return None if dataset is None else keras.tree.map_structure(_symbol, dataset.element_spec)


def _symbol(spec: Any) -> Any:
    return keras.KerasTensor(spec.shape, dtype=keras.backend.standardize_dtype(spec.dtype))


def _overlaid_inside(loader: Any, make: Callable[[Any], Any]) -> Any:
    """Return the torch loader in which Keras wraps a Grain dataset, with what `make` returns in it."""
    if hasattr(loader.dataset, "iterable"):
        loader.dataset.iterable = make(loader.dataset.iterable)
    return loader


def restart_validation_data(model: Any) -> None:
    """Have a validation that begins prepare its data once more, as Keras did just before."""
    iterator = getattr(model, "_eval_epoch_iterator", None)
    if iterator is not None:
        iterator.reset()


def validation_iterator_count(model: Any) -> int:
    """Return how many iterators the validation of a fit that ends now has made of its data.

    Behind the last batch Keras makes one more, that nobody asks; on TensorFlow it is there at once.
    """
    iterator = getattr(model, "_eval_epoch_iterator", None)
    is_new = getattr(iterator, "_steps_seen", None) == 0
    another = is_new and getattr(iterator, "_current_iterator", None) is not None
    return 1 + (another and _is_tensorflow())


def validation_leaves_batches(model: Any) -> bool:
    """Return whether the validation of a fit takes less than its data has (``validation_steps``)."""
    iterator = getattr(model, "_eval_epoch_iterator", None)
    steps = getattr(iterator, "steps_per_epoch", None)
    if iterator is None or not steps:
        return False
    whole = iterator.data_adapter.num_batches
    return whole is None or bool(steps < whole)


def _is_tensorflow() -> bool:
    return bool(keras.backend.backend() == "tensorflow")
