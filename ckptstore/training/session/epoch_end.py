"""The end of an epoch, kept while the next one begins: what an exception in that beginning leaves to be saved.

A callback that raises in ``on_epoch_begin``, or before the first batch, ends the fit when others have seen the epoch
begin, and perhaps the data too. What can be resumed from is the end of the epoch before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from ckptstore.keras.state import callbacks, optimizers, random_state
from ckptstore.keras.state.random_state import GlobalGenerators
from ckptstore.training.data.replay import Iteration
from ckptstore.training.session.position import FitPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnd:
    """Where a fit stood before any callback saw the next epoch begin.

    Attributes:
        position: The epoch and its batches.
        values: The state of the other callbacks, and where the data stood.
        generators: The global random generators.
        rates: The learning rates, which schedulers set when an epoch begins.
    """

    position: FitPosition
    values: Mapping[str, Any]
    generators: GlobalGenerators
    rates: list[float | None]

    @classmethod
    def of(cls, model: Any, position: FitPosition, siblings: list[Any], iteration: Iteration) -> Self | None:
        """Return where a fit stands, or None where it has not trained yet."""
        if not position.step:
            return None
        values = {"callbacks": callbacks.get_states(siblings), "data": iteration.position(in_epoch=False)}
        return cls(
            position=replace(position),
            values=values,
            generators=random_state.capture(),
            rates=optimizers.learning_rates(model),
        )


class Guard(ContextDecorator):
    """Calls a function with the error when its block, or the function that it decorates, raises; the error goes on.

    It may be used again and again, within itself too.

    Args:
        let_go: Called with the error; may be called again with the same one, further out.

    Example:
        >>> with Guard(lambda error: print("letting go:", error)):
        ...     raise ValueError("no such epoch")
        Traceback (most recent call last):
        ...
        ValueError: no such epoch
    """

    def __init__(self, let_go: Callable[[BaseException], None]) -> None:
        self._let_go = let_go

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go where the block has raised."""
        if error is not None:
            self._let_go(error)
