"""Lays the hooks of a session over those of all callbacks of a fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ckptstore.keras.private import FitLoop
from ckptstore.training.session.end_on_error import EndOnError


def wrap_hooks(loop: FitLoop, hooks: Mapping[str, Callable[..., None]], end_on_error: EndOnError) -> None:
    """Call a session instead of the callbacks of a fit, until the loop is released.

    Args:
        loop: Keras' loop.
        hooks: The session's methods by the names of hooks; each is given the one that calls all callbacks, then what
            Keras passes.
        end_on_error: Ends the session if one of the other hooks raises, which may end the fit.
    """
    for name, method in hooks.items():
        loop.wrap_method(loop.callbacks, name, partial(partial, method))
    for name in ("on_test_batch_begin", "on_test_end"):
        loop.wrap_method(loop.callbacks, name, end_on_error)
    for callback in loop.callbacks_after:
        loop.wrap_method(callback, "on_train_begin", end_on_error)


def tell_first(
    listener: Callable[..., object],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return what makes a hook tell a listener, then call the callbacks: what they do belongs to the new phase."""

    def wrap(others: Callable[..., None]) -> Callable[..., None]:
        def hook(*arguments: Any, **more: Any) -> None:
            listener(*arguments, **more)
            others(*arguments, **more)

        return hook

    return wrap
