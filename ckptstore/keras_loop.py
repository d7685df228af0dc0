"""What ckptstore uses of a running ``fit`` without Keras promising it, and its fallback.

A callback is told when epochs and batches begin and end. To go on in the middle of an epoch it must also reach the
other callbacks of the fit, and the iterator that hands out the batches. Both are local variables of Keras' ``fit``,
and are looked up there, in the frames below the callback. Hooks are laid over the methods of these two objects alone,
not over Keras' classes, and go with `release`.

Tried on Keras 3.12 to 3.15, on JAX, torch and TensorFlow. In a Keras with another loop, and in loops written by hand,
`running_fit` returns None: callbacks then save, and resume at the ends of epochs, without the others' state.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from types import CodeType, FrameType
from typing import Any

import keras

# What an epoch's iterator must have for its batches to be counted and passed over.
_ITERATOR = ("_enumerate_iterator", "_get_iterator", "_current_iterator", "_steps_seen", "data_adapter")
_BATCHES = Iterator[tuple[int, int, Any]]
# With which Keras, on JAX, takes batches ahead of training: of this version, of earlier ones.
_TAKE_AHEAD = ("_one_batch_ahead_iterator", "_prefetch_numpy_iterator")
_NOTHING = object()


class FitLoop:
    """One call of ``fit`` that is running.

    Attributes:
        model: The model that is trained.
        callbacks: Keras' list of all callbacks of this fit.
        iterator: Keras' iterator over the batches of an epoch.
        epochs: The epoch before which training ends.
        initial_epoch: The epoch that the caller asked to begin with.
        source: What the caller trains on: arrays, a dataset, a loader, a generator.
        validation_source: What the caller validates on, or None.
    """

    def __init__(self, model: Any, names: dict[str, Any], code: CodeType) -> None:
        self.model = model
        self.callbacks: Any = names["callbacks"]
        self.iterator: Any = names["epoch_iterator"]
        self.epochs: int = names["epochs"]
        self.initial_epoch: int = names.get("initial_epoch") or 0
        self.source: Any = names.get("x")
        self.validation_source: Any = names.get("val_x")
        self._code = code
        self._hooked: list[tuple[Any, str, Any, Any]] = []
        self._before: Any = None

    # --- hooks -------------------------------------------------------------------------------------

    def hook(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Lay what `make` returns, given the method as it was, over a method of one object of this fit."""
        self._overlay(owner, name, make(getattr(owner, name)))

    def _overlay(self, owner: Any, name: str, laid: Any) -> None:
        before = owner.__dict__.get(name, _NOTHING)
        owner.__dict__[name] = laid
        self._hooked.append((owner, name, laid, before))

    @property
    def is_hooked(self) -> bool:
        """Whether somebody has laid hooks over this fit."""
        return "on_epoch_begin" in vars(self.callbacks)

    def release(self) -> None:
        """Take all hooks away; may be repeated."""
        hooked, self._hooked = self._hooked, []
        for owner, name, laid, before in reversed(hooked):
            if owner.__dict__.get(name) is not laid:
                continue
            if before is _NOTHING:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = before

    def run_hooks_in_order(self) -> None:
        """Have Keras call batch hooks before it goes on, not in another thread, whose model is in use meanwhile."""
        for name in ("_async_train", "_async_test"):
            if getattr(self.callbacks, name, False):
                setattr(self.callbacks, name, False)

    def behind(self, callback: Any) -> list[Any]:
        """Return the callbacks that Keras calls after one."""
        found = [one is callback for one in self.callbacks.callbacks]
        return list(self.callbacks.callbacks[found.index(True) + 1 :])

    def call_the_rest(self, hook: str, number: int, error: BaseException) -> None:
        """Have the callbacks behind one that raised an error see the end of the batch or epoch too.

        Each has then seen the same; what one of them raises becomes a note on the error.
        """
        step = error.__traceback__
        while step is not None and step.tb_frame.f_locals.get("self") is not self.callbacks:
            step = step.tb_next
        names = {} if step is None else step.tb_frame.f_locals
        behind = [one is names.get("callback") for one in self.callbacks.callbacks]
        for callback in self.callbacks.callbacks[behind.index(True) + 1 :] if any(behind) else ():
            try:
                getattr(callback, hook)(number, names.get("logs"))
            except Exception as another:
                error.add_note(f"{type(callback).__name__}.{hook} raised too: {another!r}")

    def show_progress(self, batch: int) -> None:
        """Let the progress bar, if there is one, show that a batch is passed over."""
        bar = getattr(self.callbacks, "_progbar", None)
        if bar is not None:
            bar.on_train_batch_end(batch, {})

    def is_running(self, frame: FrameType | None) -> bool:
        """Return whether this fit is among a frame and those that called it."""
        while frame is not None:
            if frame.f_code is self._code and frame.f_locals.get("epoch_iterator") is self.iterator:
                return True
            frame = frame.f_back
        return False

    # --- where to begin ----------------------------------------------------------------------------

    def begin_at(self, epoch: int) -> None:
        """Have the loop begin at an epoch; only while ``on_train_begin`` is called."""
        self._before = getattr(self.model, "_initial_epoch", None)
        self.model._initial_epoch = epoch

    def forget_beginning(self) -> None:
        """Put back what `begin_at` changed, or the next plain fit would begin there too."""
        self.model._initial_epoch = self._before

    # --- batches -----------------------------------------------------------------------------------

    @property
    def batches_per_execution(self) -> int:
        """How many batches one call of the train function takes."""
        return int(self.iterator.steps_per_execution or 1)

    @property
    def batches_per_epoch(self) -> int | None:
        """How many batches an epoch has, or None where that is not known."""
        number = self.iterator.num_batches
        return None if number is None else int(number)

    @property
    def batches_inferred(self) -> int | None:
        """How many batches an epoch has by what Keras saw of an earlier one; None where it has seen none, or knew."""
        known = self.iterator.data_adapter.num_batches
        return None if known is not None else self.iterator._num_batches

    def infer_batches(self, number: int | None) -> None:
        """Have Keras ask for as many as it had inferred in another process."""
        if number is not None and self.iterator._num_batches is None:
            self.iterator._num_batches = number

    @property
    def goes_on_over_epochs(self) -> bool:
        """Whether one pass over the data serves several epochs (``steps_per_epoch``)."""
        return bool(self.iterator.steps_per_epoch)

    @property
    def adapter_name(self) -> str:
        """Name of Keras' class for the kind of data, such as ``"ArrayDataAdapter"``."""
        return type(self.iterator.data_adapter).__name__

    @property
    def asks_ahead(self) -> bool:
        """Whether a thread of the pipeline may ask the data for more than the training has had (TensorFlow)."""
        return _is_tensorflow() and self.adapter_name not in ("ArrayDataAdapter", "TFDatasetAdapter")

    @property
    def counts_iterators(self) -> bool:
        """Whether the order of the data depends on how many iterators were made of it before (tf.data)."""
        return self.adapter_name == "TFDatasetAdapter"

    @property
    def makes_at_once(self) -> bool:
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
        if not self.counts_iterators and not (_is_tensorflow() and self.adapter_name == "ArrayDataAdapter"):
            return False
        return seed is not None and seed() is None

    @property
    def prefetched(self) -> deque[Any] | None:
        """Batches that workers made in the epoch before and Keras keeps for the next one; None without workers."""
        enqueuer = getattr(self.iterator.data_adapter, "enqueuer", None)
        batches = getattr(getattr(enqueuer, "ready_queue", None), "queue", None)
        return batches if isinstance(batches, deque) else None

    def asks_one_batch_at_a_time(self) -> bool:
        """Have Keras ask the data for a batch only when it trains on it; returns whether it does.

        On an accelerator JAX's transfer of a batch then waits for the training on the one before.
        """
        for name in _TAKE_AHEAD:
            if hasattr(self.iterator, name):
                self.hook(self.iterator, name, lambda _: iter)
        return not _is_tensorflow()

    def overlay_data(self, make: Callable[[Any], Any]) -> None:
        """Have Keras iterate over what `make` returns, given the torch loader or Grain dataset that it would.

        In a Keras that keeps it elsewhere, and for other data, `make` is never called.
        """
        adapter, on_torch = self.iterator.data_adapter, keras.backend.backend() == "torch"
        if self.adapter_name == "TorchDataLoaderAdapter" and hasattr(adapter, "_dataloader"):
            self._overlay(adapter, "_dataloader", make(adapter._dataloader))
        elif self.is_grain and on_torch:
            self.hook(adapter, "get_torch_dataloader", lambda get: lambda: _overlaid_inside(get(), make))
        elif self.is_grain:
            self.hook(adapter, "get_jax_iterator", lambda get: lambda: make(get()))

    def take(self, batches: Iterator[Any]) -> bool:
        """Take from an iterator what one execution takes, and drop it; returns whether there was any."""
        return len(list(islice(batches, self.batches_per_execution))) > 0

    def make_iterator(self) -> Iterator[Any]:
        """Make the iterator that the coming epochs will go on with."""
        made: Iterator[Any] = iter(self.iterator._get_iterator())
        self.iterator._current_iterator = made
        return made

    def pass_over_execution(self, logs: dict[str, Any]) -> Iterator[None]:
        """Let the next execution return `logs` without computing; returns the data to hand to it."""
        compute = self.model.train_function

        def passed_over(*arguments: Any) -> Any:
            self.model.train_function = compute
            return (logs, arguments[0]) if keras.backend.backend() == "jax" else logs

        self.model.train_function = passed_over
        return iter([None] * self.batches_per_execution)

    def build(self) -> None:
        """Build model, optimizer and metrics, where the backend leaves that to the first batch (TensorFlow)."""
        dataset = getattr(self.iterator, "_distributed_dataset", None)
        build = getattr(self.model, "_symbolic_build", None)
        if dataset is None or build is None:
            return

        def symbol(spec: Any) -> Any:
            return keras.KerasTensor(spec.shape, dtype=keras.backend.standardize_dtype(spec.dtype))

        build(data_batch=keras.tree.map_structure(symbol, dataset.element_spec))


def _overlaid_inside(loader: Any, make: Callable[[Any], Any]) -> Any:
    """Return the torch loader in which Keras wraps a Grain dataset, with what `make` returns in it."""
    if hasattr(loader.dataset, "iterable"):
        loader.dataset.iterable = make(loader.dataset.iterable)
    return loader


def _is_tensorflow() -> bool:
    return bool(keras.backend.backend() == "tensorflow")


def running_fit(callback: Any) -> FitLoop | None:
    """Return the fit that is calling a callback, or None where there is none that can be reached."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "fit":
            names = frame.f_locals
            if _is_fit_of(callback, names):
                return FitLoop(names["self"], names, frame.f_code)
        frame = frame.f_back
    return None


def _is_fit_of(callback: Any, names: dict[str, Any]) -> bool:
    callbacks, iterator = names.get("callbacks"), names.get("epoch_iterator")
    return (
        isinstance(callbacks, keras.callbacks.CallbackList)
        and any(one is callback for one in getattr(callbacks, "callbacks", ()))
        and all(hasattr(iterator, name) for name in _ITERATOR)
        and isinstance(names.get("epochs"), int)
        and "self" in names
    )
