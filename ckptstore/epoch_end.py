"""The end of an epoch, kept while the next one begins: what an exception in that beginning leaves to be saved.

A callback that raises in ``on_epoch_begin``, or before the first batch, ends the fit when others have seen the epoch
begin, and perhaps the data too. What can be resumed from is the end of the epoch before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from ckptstore import callback_state, keras_optimizers, random_state
from ckptstore.fit_position import FitPosition
from ckptstore.iteration import Iteration
from ckptstore.random_state import Generators


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
    generators: Generators
    rates: list[float | None]

    @classmethod
    def of(cls, model: Any, position: FitPosition, siblings: list[Any], iteration: Iteration) -> Self | None:
        """Return where a fit stands, or None where it has not trained yet."""
        if not position.step:
            return None
        values = {"callbacks": callback_state.capture(siblings), "data": iteration.position(in_epoch=False)}
        return cls(
            position=replace(position),
            values=values,
            generators=random_state.capture(),
            rates=keras_optimizers.learning_rates(model),
        )
