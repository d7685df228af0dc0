"""Hooks: wrapped methods of single objects, not of their classes, all restored at once.

The wrapper is stored in the object's own ``__dict__``, where Python looks first.

`report_errors` reports with them what a training step or a validation of a fit raises, of which Keras tells its
callbacks nothing. On JAX and TensorFlow, Keras runs the batches of an epoch inside
``EpochIterator.catch_stop_iteration``; on torch it calls ``model.train_function`` for each; and everywhere
``model.evaluate`` for a validation. Several callbacks share the wrapper of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import keras

_ABSENT = object()
Listener = Callable[[BaseException], None]
_BATCHES = "catch_stop_iteration"


class Hooks:
    """Wrapped methods and replaced attributes of one fit."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any, Any]] = []

    def wrap_method(
        self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        """Replace a method of one object with what `make` returns for it."""
        self.replace_attribute(owner, name, make(getattr(owner, name)))

    def replace_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute of one object."""
        before = owner.__dict__.get(name, _ABSENT)
        owner.__dict__[name] = value
        self._replaced.append((owner, name, value, before))

    def release(self) -> None:
        """Restore everything; may be called again. What others have replaced since stays."""
        replaced, self._replaced = self._replaced, []
        for owner, name, value, before in reversed(replaced):
            if owner.__dict__.get(name) is not value:
                continue
            if before is _ABSENT:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = before


class _Reported:
    """A method of a model that reports what it raises.

    Args:
        call: The method.
        before: What the model's own ``__dict__`` had under its name.
    """

    def __init__(self, call: Callable[..., Any], before: Any) -> None:
        self.before = before
        self.listeners: list[Listener] = []
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._call(*args, **kwargs)
        except BaseException as error:
            for listener in list(self.listeners):
                listener(error)
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


class _ReportedBlock:
    """A context manager that reports what its block raises, but for the end of the data."""

    def __init__(self, manager: Any, listener: Listener) -> None:
        self._manager = manager
        self._listener = listener

    def __enter__(self) -> Any:
        return self._manager.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        if error is not None and not isinstance(error, StopIteration):
            self._listener(error)
        return self._manager.__exit__(kind, error, trace)


def report_errors(model: Any, iterator: Any, hooks: Hooks, listener: Listener) -> Callable[[], None]:
    """Call a listener with what the steps and validations of a fit raise; returns what ends that.

    Args:
        model: The model.
        iterator: Keras' ``EpochIterator`` of the fit.
        hooks: Restores what is wrapped of the iterator.
        listener: Called with the exception; it must not raise.
    """
    names = ["evaluate"]
    if keras.backend.backend() != "torch" and hasattr(iterator, _BATCHES):
        hooks.wrap_method(iterator, _BATCHES, lambda catch: lambda: _ReportedBlock(catch(), listener))
    else:
        names.append("train_function")
    for name in names:
        _add(model, name, listener)

    def end() -> None:
        for name in names:
            _remove(model, name, listener)

    return end


def _add(model: Any, name: str, listener: Listener) -> None:
    call = getattr(model, name, None)
    if not callable(call):
        return
    if not isinstance(call, _Reported):
        call = _Reported(call, vars(model).get(name, _ABSENT))
        vars(model)[name] = call
    call.listeners.append(listener)


def _remove(model: Any, name: str, listener: Listener) -> None:
    reported = vars(model).get(name)
    if not isinstance(reported, _Reported) or listener not in reported.listeners:
        return
    reported.listeners.remove(listener)
    if reported.listeners:
        return
    if reported.before is _ABSENT:
        del vars(model)[name]
    else:
        vars(model)[name] = reported.before
