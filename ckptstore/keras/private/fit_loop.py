"""A running ``fit``: its callbacks, and where it begins.

A callback is told when epochs and batches begin and end. To go on in the middle of an epoch it must also reach the
other callbacks of the fit, and the iterator that hands out the batches. Both are local variables of Keras' ``fit``,
and are looked up there, in the frames below the callback. Hooks are laid over the methods of these two objects alone,
not over Keras' classes, and go with `release`.

Fallback: in a Keras with another loop, and in loops written by hand, `running_fit` returns None: callbacks then save,
and resume at the ends of epochs, without the others' state.
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
    """One call of ``fit`` that is running.

    Attributes:
        model: The model that is trained.
        callbacks: Keras' list of all callbacks of this fit.
        data: What it trains on, as Keras goes through it.
        epochs: The epoch before which training ends.
        initial_epoch: The epoch that the caller asked to begin with.
        source: What the caller trains on: arrays, a dataset, a loader, a generator.
        validation_source: What the caller validates on, or None.
    """

    def __init__(self, model: Any, names: dict[str, Any], code: CodeType) -> None:
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
        self._others_look = True

    # --- hooks -------------------------------------------------------------------------------------

    def wrap_method(
        self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Lay what `make` returns, given the method as it was, over a method of one object of this fit."""
        self._hooks.wrap_method(owner, name, make)

    @property
    def is_hooked(self) -> bool:
        """Whether somebody has laid hooks over this fit."""
        return "on_epoch_begin" in vars(self.callbacks)

    def release(self) -> None:
        """Take all hooks away; may be repeated."""
        self._hooks.release()

    # --- callbacks ---------------------------------------------------------------------------------

    def schedule_hooks_without(self, callback: Any) -> None:
        """Have Keras call batch hooks as it would if `callback` were not there.

        A list with a callback that looks at batches waits for each batch's result, and on JAX the next one is prepared
        no more while it computes. Where no other callback wants that, Keras calls the hooks in another thread.
        """
        kept = (
            callback,
            getattr(self.callbacks, "_progbar", None),
            getattr(self.callbacks, "_history", None),
        )
        others = [one for one in self.callbacks.callbacks if not any(one is other for other in kept)]
        self._others_look = any(map(_looks_at_batches, others))
        without = keras.callbacks.CallbackList(others)
        for name in ("_async_train", "_async_test"):
            if hasattr(self.callbacks, name) and hasattr(self.callbacks, "_executor"):
                setattr(self.callbacks, name, getattr(without, name, False))
        if hasattr(self.callbacks, "_executor") and self.callbacks._executor is None:
            # Keras ends it with the fit.
            self.callbacks._executor = ThreadPoolExecutor(thread_name_prefix="keras-callbacks")

    def wait_for_callbacks(self) -> None:
        """Wait until the hooks that Keras calls in another thread have ended; raises the first error of one.

        That thread may be twenty milliseconds behind. Where all that it has to do is to call what does nothing, nobody
        waits for it.
        """
        waiting = getattr(self.callbacks, "_futures", None)
        if not waiting or not self._others_look:
            return
        # Keras itself would raise the same error again and again.
        self.callbacks._futures = []
        wait(waiting)
        for future in waiting:
            future.result()

    def callbacks_after(self, callback: Any) -> list[Any]:
        """Return the callbacks that Keras calls after one."""
        found = [one is callback for one in self.callbacks.callbacks]
        return list(self.callbacks.callbacks[found.index(True) + 1 :])

    def call_remaining(self, hook: str, number: int, error: BaseException) -> None:
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
            if frame.f_code is self._code and frame.f_locals.get("epoch_iterator") is self._iterator:
                return True
            frame = frame.f_back
        return False

    # --- where to begin ----------------------------------------------------------------------------

    def start_at_epoch(self, epoch: int) -> None:
        """Have the loop begin at an epoch; only while ``on_train_begin`` is called."""
        self._before = getattr(self.model, "_initial_epoch", None)
        start_at_epoch(self.model, epoch)

    def restore_initial_epoch(self) -> None:
        """Put back what `start_at_epoch` changed, or the next plain fit would begin there too."""
        self.model._initial_epoch = self._before

    def skip_execution(self, logs: dict[str, Any]) -> Iterator[None]:
        """Let the next execution return `logs` without computing; returns the data to hand to it."""
        compute = self.model.train_function

        def passed_over(*arguments: Any) -> Any:
            self.model.train_function = compute
            return (logs, arguments[0]) if keras.backend.backend() == "jax" else logs

        self.model.train_function = passed_over
        return iter([None] * self.data.batches_per_execution)

    def finalize_weights(self) -> None:
        """Do to the weights what Keras does behind the last epoch: averaged ones take their place."""
        if isinstance(self.model.optimizer, keras.optimizers.Optimizer) and self.epochs > 0:
            self.model.optimizer.finalize_variable_values(self.model.trainable_weights)

    def build(self) -> None:
        """Build model, optimizer and metrics, where the backend leaves that to the first batch (TensorFlow)."""
        batch = self.data.symbolic_batch()
        build = getattr(self.model, "_symbolic_build", None)
        if batch is not None and build is not None:
            build(data_batch=batch)


def _looks_at_batches(callback: Any) -> bool:
    """Return whether a callback has hooks of single batches."""
    base = keras.callbacks.Callback
    return any(
        name in vars(callback) or getattr(type(callback), name, None) is not getattr(base, name, None)
        for name in _BATCH_HOOKS
    )


def start_at_epoch(model: Any, epoch: int) -> None:
    """Have a model's loop begin at an epoch; only while ``on_train_begin`` is called."""
    model._initial_epoch = epoch


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
        and epoch_data.is_supported(iterator)
        and isinstance(names.get("epochs"), int)
        and "self" in names
    )
