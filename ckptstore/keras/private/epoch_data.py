"""Training data of a running fit, seen through Keras' ``EpochIterator``.

Keras' ``fit`` creates one ``EpochIterator`` and iterates over it once per epoch. Each time, ``_enumerate_iterator``
yields the epoch's steps. It gets an iterator over the batches from ``_get_iterator`` or, with ``steps_per_epoch``,
continues the one of the epoch before. `EpochData` wraps these two methods and reads Keras' counts. From the data
adapter and the backend it knows how data is read: with workers, by a thread ahead of training, or batch by batch.

Fallback: if the iterator lacks an attribute (`is_supported`), a fit cannot be resumed within an epoch.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import keras

from ckptstore.keras.private.backends.tensorflow_data import changes_variables, keeps_first_order
from ckptstore.keras.private.hooks import Hooks

Step = tuple[int, int, Any]

# Attributes that the ``EpochIterator`` must have so that batches can be counted and skipped.
_REQUIRED_ATTRIBUTES = (
    "_enumerate_iterator",
    "_get_iterator",
    "_current_iterator",
    "_steps_seen",
    "data_adapter",
)
# Methods with which Keras prefetches on JAX: in the current version, and in earlier ones.
_PREFETCH_METHODS = ("_one_batch_ahead_iterator", "_prefetch_numpy_iterator")


def is_supported(iterator: Any) -> bool:
    """Return True if Keras' ``EpochIterator`` has all attributes that this module needs."""
    return all(hasattr(iterator, name) for name in _REQUIRED_ATTRIBUTES)


class EpochData:
    """Training data of one fit.

    Args:
        iterator: Keras' ``EpochIterator`` of the fit.
        hooks: Records the wrapped methods, and restores them when the fit is released.
    """

    def __init__(self, iterator: Any, hooks: Hooks) -> None:
        self._iterator = iterator
        self._hooks = hooks

    # --- hooks -------------------------------------------------------------------------------------

    def wrap_iterator_creation(self, make: Callable[[Callable[[], Any]], Callable[[], Any]]) -> None:
        """Wrap the method that creates an iterator over the data."""
        self._hooks.wrap_method(self._iterator, "_get_iterator", make)

    def wrap_epoch_steps(
        self, make: Callable[[Callable[[], Iterator[Step]]], Callable[[], Iterator[Step]]]
    ) -> None:
        """Wrap the iteration over an epoch's steps: (index of first batch, index of last batch, iterator)."""
        self._hooks.wrap_method(self._iterator, "_enumerate_iterator", make)

    # --- counts ------------------------------------------------------------------------------------

    @property
    def has_iterator(self) -> bool:
        """True if Keras holds an iterator that the next epochs may continue."""
        return self._iterator._current_iterator is not None

    @property
    def steps_seen(self) -> int:
        """Number of batches that Keras has read from that iterator, by its own count."""
        return int(self._iterator._steps_seen)

    @steps_seen.setter
    def steps_seen(self, number: int) -> None:
        self._iterator._steps_seen = number

    @property
    def batches_per_execution(self) -> int:
        """Number of batches that one call of the train function reads (``steps_per_execution``)."""
        return int(self._iterator.steps_per_execution or 1)

    @property
    def batches_per_epoch(self) -> int | None:
        """Number of batches in an epoch, or None if unknown."""
        number = self._iterator.num_batches
        return None if number is None else int(number)

    @property
    def batch_size(self) -> int | None:
        """Number of samples in a batch, or None if unknown."""
        size = getattr(self._iterator.data_adapter, "batch_size", None)
        return size if isinstance(size, int) else None

    @property
    def inferred_batches(self) -> int | None:
        """Number of batches that Keras counted in an earlier epoch; None before, or if the data has a length."""
        known = self._iterator.data_adapter.num_batches
        return None if known is not None else self._iterator._num_batches

    def set_inferred_batches(self, number: int | None) -> None:
        """Set the number of batches that Keras counted in another process."""
        if number is not None and self._iterator._num_batches is None:
            self._iterator._num_batches = number

    @property
    def spans_epochs(self) -> bool:
        """True if one iterator serves several epochs (``steps_per_epoch``)."""
        return bool(self._iterator.steps_per_epoch)

    @property
    def adapter_name(self) -> str:
        """Class name of Keras' data adapter, such as ``"ArrayDataAdapter"``."""
        return type(self._iterator.data_adapter).__name__

    @property
    def reads_ahead(self) -> bool:
        """True if a tf.data thread may read more data than the training has used (TensorFlow)."""
        return _is_tensorflow() and self.adapter_name not in ("ArrayDataAdapter", "TFDatasetAdapter")

    @property
    def order_depends_on_iterators(self) -> bool:
        """True if the order of the data depends on how many iterators were created before (tf.data)."""
        return self.adapter_name == "TFDatasetAdapter"

    @property
    def keeps_first_order(self) -> bool:
        """True if the order of the first whole iteration is the order of all later ones (``cache`` of tf.data)."""
        return keeps_first_order(getattr(self._iterator.data_adapter, "_dataset", None))

    @property
    def changes_variables(self) -> bool:
        """True if a function of a tf.data pipeline changes variables, such as the seeds of layers that augment."""
        return changes_variables(getattr(self._iterator.data_adapter, "_dataset", None))

    @property
    def creates_iterators_at_once(self) -> bool:
        """True if Keras creates an iterator at once (TensorFlow), not when it reads the first batch."""
        return _is_tensorflow()

    @property
    def is_grain(self) -> bool:
        """True if the data is a Grain dataset or loader."""
        return self.adapter_name == "GrainDatasetAdapter"

    @property
    def is_unseeded(self) -> bool:
        """True if TensorFlow may shuffle the data, and has no global seed that another process would share."""
        context = sys.modules.get("tensorflow.python.eager.context")
        seed = getattr(context, "global_seed", None)
        if not self.order_depends_on_iterators and not (
            _is_tensorflow() and self.adapter_name == "ArrayDataAdapter"
        ):
            return False
        return seed is not None and seed() is None

    @property
    def first_batches(self) -> list[Any] | None:
        """The batches that Keras has taken from a Python generator before the fit; None of other data."""
        batches = getattr(self._iterator.data_adapter, "_first_batches", None)
        return batches if isinstance(batches, list) else None

    @property
    def prefetched(self) -> deque[Any] | None:
        """Queue of batches that workers prefetched for the next epoch; None without workers."""
        enqueuer = getattr(self._iterator.data_adapter, "enqueuer", None)
        batches = getattr(getattr(enqueuer, "ready_queue", None), "queue", None)
        return batches if isinstance(batches, deque) else None

    def stop_reading_ahead(self) -> bool:
        """Turn off prefetching: Keras then reads a batch only when it trains on it.

        On an accelerator, JAX then transfers a batch only after the training step on the previous one.

        Returns:
            True if nothing reads ahead from now on; False on TensorFlow.
        """
        for name in _PREFETCH_METHODS:
            if hasattr(self._iterator, name):
                self._hooks.wrap_method(self._iterator, name, lambda _: iter)
        return not _is_tensorflow()

    def wrap_data(self, make: Callable[[Any], Any]) -> None:
        """Make Keras iterate over the result of `make` instead of its torch loader or Grain dataset.

        `make` is never called for other data, nor in a Keras version that keeps the loader elsewhere.
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

    def wrap_batches(self, make: Callable[[Any], Any]) -> None:
        """Make Keras iterate over the result of `make` instead of the batches that its data adapter gives.

        They are in host memory there, before JAX moves them. Nothing is wrapped on TensorFlow, where no batch passes
        Python, nor in a Keras version whose adapters have other methods.
        """
        if keras.backend.backend() == "torch":
            self._hooks.wrap_method(self._iterator, "_get_iterator", lambda get: lambda: make(get()))
        elif not _is_tensorflow() and hasattr(self._iterator.data_adapter, "get_jax_iterator"):
            adapter = self._iterator.data_adapter
            self._hooks.wrap_method(adapter, "get_jax_iterator", lambda get: lambda: make(get()))

    def discard_batches(self, batches: Iterator[Any]) -> bool:
        """Read and discard the batches of one execution; return False if the iterator had none."""
        return len(list(islice(batches, self.batches_per_execution))) > 0

    def new_iterator(self) -> Iterator[Any]:
        """Return a new iterator over the data, which Keras does not use."""
        created: Iterator[Any] = iter(self._iterator._get_iterator())
        return created

    def start_iterator(self) -> Iterator[Any]:
        """Return a new iterator over the data, which Keras continues in the next epochs."""
        created = self.new_iterator()
        self._iterator._current_iterator = created
        return created

    def symbolic_batch(self) -> Any:
        """Return a symbolic batch if its shapes are known before the first batch (TensorFlow), else None."""
        spec = self.batch_spec()
        return None if spec is None else keras.tree.map_structure(_symbolic_tensor, spec)

    def batch_spec(self) -> Any:
        """Return the specification of a batch if it is known before the first batch (TensorFlow), else None.

        Where a strategy spreads batches over replicas, Keras has built the model before it calls any callback.
        """
        dataset = getattr(self._iterator, "_distributed_dataset", None)
        specs = None if dataset is None else dataset.element_spec
        if specs is None or not all(hasattr(spec, "shape") for spec in keras.tree.flatten(specs)):
            return None
        return specs


def _symbolic_tensor(spec: Any) -> Any:
    return keras.KerasTensor(spec.shape, dtype=keras.backend.standardize_dtype(spec.dtype))


def _with_wrapped_dataset(loader: Any, make: Callable[[Any], Any]) -> Any:
    """Replace the Grain dataset in Keras' torch loader with the result of `make`; return the loader."""
    if hasattr(loader.dataset, "iterable"):
        loader.dataset.iterable = make(loader.dataset.iterable)
    return loader


def restart_validation_data(model: Any) -> None:
    """Reset the iterator of a validation that has just begun, as Keras did just before."""
    iterator = getattr(model, "_eval_epoch_iterator", None)
    if iterator is not None:
        iterator.reset()


def validation_iterator_count(model: Any) -> int:
    """Return how many iterators over its data a validation within a fit has created; call it when the validation ends.

    After the last batch Keras asks for one more iterator, which is never used. Only TensorFlow creates it at once.
    """
    iterator = getattr(model, "_eval_epoch_iterator", None)
    is_unread = getattr(iterator, "_steps_seen", None) == 0
    has_another = is_unread and getattr(iterator, "_current_iterator", None) is not None
    return 1 + (has_another and _is_tensorflow())


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
