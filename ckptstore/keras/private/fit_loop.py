"""A running ``fit``: its callbacks, its data, and the epoch that it starts at.

Keras tells a callback when epochs and batches begin and end. To resume in the middle of an epoch, a callback also needs
the other callbacks of the fit, and the iterator that yields the batches. Both are local variables of Keras' ``fit``,
and are found in its frame, below that of the callback. Methods of these two objects are wrapped, not those of Keras'
classes, until `FitLoop.release`.

Fallback: in a Keras with another loop, and in loops written by hand, `running_fit` returns None. Callbacks then save,
and resume at the ends of epochs, without the state of the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from types import CodeType, FrameType
from typing import Any

import keras

from ckptstore.keras.private import epoch_data
from ckptstore.keras.private.epoch_data import EpochData
from ckptstore.keras.private.hooks import Hooks

_BATCH_HOOKS = (
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_batch_begin",
    "on_test_batch_end",
)


class FitLoop:
    """A call of ``fit`` that is running.

    Attributes:
        callback: Our callback, which Keras calls.
        model: The model that is trained.
        callbacks: Keras' list of all callbacks of this fit.
        data: The training data as Keras iterates over it.
        epochs: The epoch before which training ends.
        initial_epoch: The epoch that the caller asked to begin with.
        source: The caller's training data: arrays, a dataset, a loader, a generator.
        validation_source: The caller's validation data, or None.
    """

    def __init__(self, callback: Any, model: Any, names: dict[str, Any], code: CodeType) -> None:
        self.callback = callback
        self.model = model
        self.callbacks: Any = names["callbacks"]
        self.epochs: int = names["epochs"]
        self.initial_epoch: int = names.get("initial_epoch") or 0
        self.source: Any = names.get("x")
        self.validation_source: Any = names.get("val_x")
        self._iterator: Any = names["epoch_iterator"]
        self._code = code
        self._hooks = Hooks()
        self.data = EpochData(self._iterator, self._hooks)
        self._before: Any = None
        self._others_have_batch_hooks = True

    # --- hooks -------------------------------------------------------------------------------------

    def wrap_method(
        self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Replace a method of one object of this fit with what `make` returns for it."""
        self._hooks.wrap_method(owner, name, make)

    @property
    def is_hooked(self) -> bool:
        """True if the callbacks of this fit are wrapped."""
        return "on_epoch_begin" in vars(self.callbacks)

    def release(self) -> None:
        """Restore all wrapped methods; may be called again."""
        self._hooks.release()

    # --- callbacks ---------------------------------------------------------------------------------

    @property
    def others(self) -> list[Any]:
        """All callbacks of the fit but ours, in order."""
        return [other for other in self.callbacks.callbacks if other is not self.callback]

    @property
    def callbacks_after(self) -> list[Any]:
        """The callbacks that Keras calls after ours."""
        found = [other is self.callback for other in self.callbacks.callbacks]
        return list(self.callbacks.callbacks[found.index(True) + 1 :])

    def schedule_hooks_without(self) -> None:
        """Have Keras call batch hooks as if our callback were not there.

        If a callback has batch hooks, Keras waits for each batch's result, and on JAX no longer prepares the next batch
        meanwhile. If no other callback has such hooks, this makes Keras call them in another thread.
        """
        kept = (
            self.callback,
            getattr(self.callbacks, "_progbar", None),
            getattr(self.callbacks, "_history", None),
        )
        others = [other for other in self.callbacks.callbacks if not any(other is known for known in kept)]
        self._others_have_batch_hooks = any(map(_has_batch_hooks, others))
        without = keras.callbacks.CallbackList(others)
        for name in ("_async_train", "_async_test"):
            if hasattr(self.callbacks, name) and hasattr(self.callbacks, "_executor"):
                setattr(self.callbacks, name, getattr(without, name, False))
        if hasattr(self.callbacks, "_executor") and self.callbacks._executor is None:
            # Keras shuts it down when the fit ends.
            self.callbacks._executor = ThreadPoolExecutor(thread_name_prefix="keras-callbacks")

    def wait_for_callbacks(self) -> None:
        """Wait until the hooks that Keras calls in another thread have ended; raise the first error of one.

        That thread may be twenty milliseconds late. If it only calls hooks that do nothing, this does not wait.
        """
        waiting = getattr(self.callbacks, "_futures", None)
        if not waiting or not self._others_have_batch_hooks:
            return
        # Otherwise Keras would raise the same error again and again.
        self.callbacks._futures = []
        wait(waiting)
        for future in waiting:
            future.result()

    def call_remaining(self, hook: str, number: int, error: BaseException) -> None:
        """Call the hook of the callbacks after the one that raised an error, so that all have seen the same batches.

        Errors that they raise become notes on `error`.
        """
        step = error.__traceback__
        while step is not None and step.tb_frame.f_locals.get("self") is not self.callbacks:
            step = step.tb_next
        names = {} if step is None else step.tb_frame.f_locals
        failed = [callback is names.get("callback") for callback in self.callbacks.callbacks]
        for callback in self.callbacks.callbacks[failed.index(True) + 1 :] if any(failed) else ():
            try:
                getattr(callback, hook)(number, names.get("logs"))
            except Exception as another:
                error.add_note(f"{type(callback).__name__}.{hook} raised too: {another!r}")

    def show_progress(self, batch: int) -> None:
        """Advance the progress bar, if there is one, by a skipped batch."""
        bar = getattr(self.callbacks, "_progbar", None)
        if bar is not None:
            bar.on_train_batch_end(batch, {})

    def is_running(self, frame: FrameType | None) -> bool:
        """Return True if this fit's frame is `frame` or one of its callers."""
        while frame is not None:
            if frame.f_code is self._code and frame.f_locals.get("epoch_iterator") is self._iterator:
                return True
            frame = frame.f_back
        return False

    # --- where to begin ----------------------------------------------------------------------------

    def start_at_epoch(self, epoch: int) -> None:
        """Make the loop start at an epoch; works only within ``on_train_begin``."""
        self._before = getattr(self.model, "_initial_epoch", None)
        start_at_epoch(self.model, epoch)

    def restore_initial_epoch(self) -> None:
        """Undo `start_at_epoch`, or the next fit would start at that epoch, too."""
        self.model._initial_epoch = self._before

    def skip_execution(self, logs: dict[str, Any]) -> Iterator[None]:
        """Make the next execution return `logs` without computing; return placeholder data for it."""
        compute = self.model.train_function

        def skipped(*arguments: Any) -> Any:
            self.model.train_function = compute
            return (logs, arguments[0]) if keras.backend.backend() == "jax" else logs

        self.model.train_function = skipped
        return iter([None] * self.data.batches_per_execution)

    def finalize_weights(self) -> None:
        """Finalize the weights as Keras does after the last epoch: averaged weights replace them."""
        if isinstance(self.model.optimizer, keras.optimizers.Optimizer) and self.epochs > 0:
            self.model.optimizer.finalize_variable_values(self.model.trainable_weights)

    def build(self) -> None:
        """Build model, optimizer and metrics if the backend would do so with the first batch (TensorFlow)."""
        batch = self.data.symbolic_batch()
        build = getattr(self.model, "_symbolic_build", None)
        if batch is not None and build is not None:
            build(data_batch=batch)


def _has_batch_hooks(callback: Any) -> bool:
    """Return True if a callback overrides a batch hook."""
    base = keras.callbacks.Callback
    return any(
        name in vars(callback) or getattr(type(callback), name, None) is not getattr(base, name, None)
        for name in _BATCH_HOOKS
    )


def start_at_epoch(model: Any, epoch: int) -> None:
    """Make a model's loop start at an epoch; works only within ``on_train_begin``."""
    model._initial_epoch = epoch


def running_fit(callback: Any) -> FitLoop | None:
    """Return the fit that is calling a callback, or None if none is found."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "fit":
            names = frame.f_locals
            if _is_fit_of(callback, names):
                return FitLoop(callback, names["self"], names, frame.f_code)
        frame = frame.f_back
    return None


def _is_fit_of(callback: Any, names: dict[str, Any]) -> bool:
    callbacks, iterator = names.get("callbacks"), names.get("epoch_iterator")
    return (
        isinstance(callbacks, keras.callbacks.CallbackList)
        and any(other is callback for other in getattr(callbacks, "callbacks", ()))
        and epoch_data.is_supported(iterator)
        and isinstance(names.get("epochs"), int)
        and "self" in names
    )
