"""A running ``fit``: its callbacks, its data, and its first epoch.

Keras calls a callback when epochs and batches begin and end. To resume in the middle of an epoch, a callback also needs
the fit's ``CallbackList`` and ``EpochIterator``. Both are local variables of Keras' ``fit``: `running_fit` walks up the
call stack from the callback and reads them from that frame. `FitLoop` then wraps methods of these two objects, not of
Keras' classes, until `FitLoop.release`.

Fallback: in a Keras with another loop, and in hand-written loops, `running_fit` returns None. Callbacks then save, and
resume at the ends of epochs, without the state of the other callbacks.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from types import CodeType, FrameType
from typing import Any

import keras

from ckptstore.keras.private import epoch_data
from ckptstore.keras.private.backends import tensorflow_random
from ckptstore.keras.private.building import trace_step
from ckptstore.keras.private.epoch_data import EpochData, Step
from ckptstore.keras.private.hooks import Hooks, report_errors
from ckptstore.keras.private.optimizers import left_unbuilt

_BATCH_HOOKS = (
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_batch_begin",
    "on_test_batch_end",
)
# Variables of Keras' ``fit`` once validation data was split off.
_ARGUMENTS = ("x", "y", "sample_weight", "val_x", "val_y", "val_sample_weight", "shuffle", "class_weight")


class FitLoop:
    """A call of ``fit`` that is running.

    Attributes:
        callback: Our callback, which Keras calls.
        model: The model in training.
        callbacks: Keras' ``CallbackList`` with all callbacks of this fit.
        data: The training data as Keras iterates over it.
        epochs: Total number of epochs: training ends before the epoch with this index.
        initial_epoch: The first epoch, as passed to ``fit``.
        source: The caller's training data: arrays, a dataset, a loader, a generator.
        validation_source: The caller's validation data, or None.
        arguments: What the fit trains and validates on, and how, by the names of Keras' own variables.
    """

    def __init__(self, callback: Any, model: Any, frame_locals: dict[str, Any], code: CodeType) -> None:
        self.callback = callback
        self.model = model
        self.callbacks: Any = frame_locals["callbacks"]
        self.epochs: int = frame_locals["epochs"]
        self.initial_epoch: int = frame_locals.get("initial_epoch") or 0
        self.source: Any = frame_locals.get("x")
        self.validation_source: Any = frame_locals.get("val_x")
        self.arguments: dict[str, Any] = {name: frame_locals.get(name) for name in _ARGUMENTS}
        self._iterator: Any = frame_locals["epoch_iterator"]
        self._code = code
        self._hooks = Hooks()
        self.data = EpochData(self._iterator, self._hooks)
        self._validated: Any = None
        self._initial_epoch_before: Any = None
        self._end_reports: Callable[[], None] | None = None
        self._others_have_batch_hooks = True

    # --- hooks -------------------------------------------------------------------------------------

    def wrap_method(
        self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Replace a method of one object of this fit with what `make` returns for it."""
        self._hooks.wrap_method(owner, name, make)

    def wrap_validation_steps(
        self, make: Callable[[Callable[[], Iterator[Step]]], Callable[[], Iterator[Step]]]
    ) -> None:
        """Wrap the iteration over the steps of validations, once; called when one begins.

        A Keras that keeps the validation's iterator elsewhere is left as it is.
        """
        iterator = getattr(self.model, "_eval_epoch_iterator", None)
        if iterator is not self._validated and epoch_data.is_supported(iterator):
            self._validated = iterator
            self.wrap_method(iterator, "_enumerate_iterator", make)

    @property
    def is_hooked(self) -> bool:
        """True if the callbacks of this fit are wrapped."""
        return "on_epoch_begin" in vars(self.callbacks)

    def report_errors(self, listener: Callable[[BaseException], None]) -> None:
        """Call a listener with what a training step or a validation raises, until `release`; it must not raise."""

        def of_this_fit(error: BaseException) -> None:
            if self.is_running(sys._getframe()):
                listener(error)

        self._end_reports = report_errors(self.model, self._iterator, self._hooks, of_this_fit)

    def release(self) -> None:
        """Restore all wrapped methods; may be called again."""
        if self._end_reports is not None:
            self._end_reports()
            self._end_reports = None
        self._hooks.release()

    # --- callbacks ---------------------------------------------------------------------------------

    @property
    def others(self) -> list[Any]:
        """All callbacks of the fit but ours, in order."""
        return [other for other in self.callbacks.callbacks if other is not self.callback]

    @property
    def callbacks_after(self) -> list[Any]:
        """The callbacks that Keras calls after ours."""
        is_ours = [other is self.callback for other in self.callbacks.callbacks]
        return list(self.callbacks.callbacks[is_ours.index(True) + 1 :])

    def schedule_hooks_without(self) -> None:
        """Make Keras call batch hooks as if our callback were not there.

        If a callback has batch hooks, Keras waits for each batch's result, and on JAX no longer prepares the next batch
        in the meantime. If no other callback has such hooks, this makes Keras call all batch hooks in another thread.
        """
        excluded = (
            self.callback,
            getattr(self.callbacks, "_progbar", None),
            getattr(self.callbacks, "_history", None),
        )
        others = [
            other for other in self.callbacks.callbacks if not any(other is known for known in excluded)
        ]
        self._others_have_batch_hooks = any(map(_has_batch_hooks, others))
        without = keras.callbacks.CallbackList(others)
        for name in ("_async_train", "_async_test"):
            if hasattr(self.callbacks, name) and hasattr(self.callbacks, "_executor"):
                setattr(self.callbacks, name, getattr(without, name, False))
        if hasattr(self.callbacks, "_executor") and self.callbacks._executor is None:
            # Keras shuts it down when the fit ends.
            self.callbacks._executor = ThreadPoolExecutor(thread_name_prefix="keras-callbacks")

    @property
    def calls_hooks_in_thread(self) -> bool:
        """True if Keras calls batch hooks in another thread, and does not wait for a batch's result."""
        return bool(getattr(self.callbacks, "_async_train", False))

    def wait_for_callbacks(self) -> None:
        """Wait until the hooks that Keras calls in another thread have ended; raise the first error among them.

        That thread may lag by twenty milliseconds. If it only calls hooks that do nothing, this does not wait.
        """
        futures = getattr(self.callbacks, "_futures", None)
        if not futures or not self._others_have_batch_hooks:
            return
        # Clear Keras' list: it would otherwise raise the same error again at each later batch.
        self.callbacks._futures = []
        wait(futures)
        for future in futures:
            future.result()

    def call_remaining(self, hook: str, number: int, error: BaseException) -> None:
        """Call a hook of the callbacks after the one that raised an error, so that all have seen the same batches.

        Errors that they raise become notes on `error`.
        """
        entry = error.__traceback__
        while entry is not None and entry.tb_frame.f_locals.get("self") is not self.callbacks:
            entry = entry.tb_next
        frame_locals = {} if entry is None else entry.tb_frame.f_locals
        failed = [callback is frame_locals.get("callback") for callback in self.callbacks.callbacks]
        for callback in self.callbacks.callbacks[failed.index(True) + 1 :] if any(failed) else ():
            try:
                getattr(callback, hook)(number, frame_locals.get("logs"))
            except Exception as another:
                error.add_note(f"{type(callback).__name__}.{hook} raised too: {another!r}")

    def show_progress(self, batch: int) -> None:
        """Advance the progress bar, if there is one, to a skipped batch."""
        bar = getattr(self.callbacks, "_progbar", None)
        if bar is not None:
            bar.on_train_batch_end(batch, {})

    def is_running(self, frame: FrameType | None) -> bool:
        """Return True if `frame` or one of its callers is the frame of this fit."""
        while frame is not None:
            if frame.f_code is self._code and frame.f_locals.get("epoch_iterator") is self._iterator:
                return True
            frame = frame.f_back
        return False

    @property
    def is_on_a_stack(self) -> bool:
        """True if a thread of this process runs this fit."""
        return any(map(self.is_running, sys._current_frames().values()))

    def trace_with_states(self) -> None:
        """Have random operations in compiled steps of TensorFlow keep their states where they can be saved."""
        tensorflow_random.trace_with_states(self.model, self._hooks)

    # --- resume ------------------------------------------------------------------------------------

    def start_at_epoch(self, epoch: int) -> None:
        """Make the loop start at an epoch; call it within ``on_train_begin``, it has no effect later."""
        self._initial_epoch_before = getattr(self.model, "_initial_epoch", None)
        start_at_epoch(self.model, epoch)

    def restore_initial_epoch(self) -> None:
        """Undo `start_at_epoch`; otherwise the next fit would start at that epoch too."""
        self.model._initial_epoch = self._initial_epoch_before

    def skip_execution(self, logs: dict[str, Any]) -> Iterator[None]:
        """Make the next execution return `logs` without training; return placeholder batches for it."""
        train_function = self.model.train_function

        def skipped(*arguments: Any) -> Any:
            self.model.train_function = train_function
            return (logs, arguments[0]) if keras.backend.backend() == "jax" else logs

        self.model.train_function = skipped
        return iter([None] * self.data.batches_per_execution)

    def finalize_weights(self) -> None:
        """Finalize the weights as Keras does after the last epoch: averaged weights, if any, replace them."""
        if isinstance(self.model.optimizer, keras.optimizers.Optimizer) and self.epochs > 0:
            self.model.optimizer.finalize_variable_values(self.model.trainable_weights)

    def build(self) -> None:
        """Build model and metrics now if the batch shapes are known (TensorFlow); the optimizer is left as it is."""
        batch = self.data.symbolic_batch()
        build = getattr(self.model, "_symbolic_build", None)
        if batch is None or build is None or type(self.model).call is keras.Model.call:
            return
        with warnings.catch_warnings(), suppress(Exception), left_unbuilt(self.model.optimizer):
            # A model that is called otherwise by its own step is built later, see `build_by_step`.
            warnings.simplefilter("ignore")
            build(data_batch=batch)

    def build_by_step(self) -> None:
        """Build whatever a training step uses (TensorFlow); elsewhere Keras has built it before.

        Raises:
            Exception: What the model's own step raises.
        """
        batch = self.data.batch_spec()
        if batch is not None:
            trace_step(self.model, batch, self.data.batch_size)


def _has_batch_hooks(callback: Any) -> bool:
    """Return True if a callback overrides a batch hook."""
    base = keras.callbacks.Callback
    return any(
        name in vars(callback) or getattr(type(callback), name, None) is not getattr(base, name, None)
        for name in _BATCH_HOOKS
    )


def start_at_epoch(model: Any, epoch: int) -> None:
    """Make a model's loop start at an epoch; call it within ``on_train_begin``, it has no effect later."""
    model._initial_epoch = epoch


def running_fit(callback: Any) -> FitLoop | None:
    """Return the fit that is calling a callback, or None if the call stack holds none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "fit":
            frame_locals = frame.f_locals
            if _is_fit_of(callback, frame_locals):
                return FitLoop(callback, frame_locals["self"], frame_locals, frame.f_code)
        frame = frame.f_back
    return None


def _is_fit_of(callback: Any, frame_locals: dict[str, Any]) -> bool:
    callbacks, iterator = frame_locals.get("callbacks"), frame_locals.get("epoch_iterator")
    return (
        isinstance(callbacks, keras.callbacks.CallbackList)
        and _has(callbacks, callback)
        and epoch_data.is_supported(iterator)
        and isinstance(frame_locals.get("epochs"), int)
        and "self" in frame_locals
    )


def running_loop(callback: Any) -> Callable[[FrameType | None], bool]:
    """Return what tells whether a frame lies in the call of ``evaluate`` or ``predict`` that is calling a callback.

    Where the call stack holds none, it returns True for any frame.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        callbacks = frame.f_locals.get("callbacks")
        if isinstance(callbacks, keras.callbacks.CallbackList) and _has(callbacks, callback):
            return partial(_is_called_by, frame.f_code, callbacks)
        frame = frame.f_back
    return lambda frame: True


def _has(callbacks: Any, callback: Any) -> bool:
    return any(other is callback for other in getattr(callbacks, "callbacks", ()))


def _is_called_by(code: CodeType, callbacks: Any, frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("callbacks") is callbacks:
            return True
        frame = frame.f_back
    return False
