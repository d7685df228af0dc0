"""A moment at which a fit can be saved, and what a callback is asked and told about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np

from ckptstore.formats.snapshot import FitState, VariableKinds
from ckptstore.keras.state import random_state
from ckptstore.keras.state.arrays import host_array, independent_copies
from ckptstore.keras.state.random_state import GlobalGenerators
from ckptstore.metrics import scalar
from ckptstore.store.store import CheckpointStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A moment at which a fit can be saved.

    Attributes:
        epoch: Zero-based index of the epoch.
        batch: Zero-based index of its last finished batch, or None at its end.
        step: Finished batches of the run.
        logs: Keras' logs, numbers where they are scalars.
        fit: Where the fit stands.
        resumable: False after a loss that is not finite: nobody wants to go on from there.
        last: Whether the fit ends behind it: then it is never left out.
    """

    epoch: int
    batch: int | None
    step: int
    logs: Mapping[str, Any]
    fit: FitState
    resumable: bool
    last: bool = False

    @property
    def droppable(self) -> bool:
        """Whether a newer one may take its place."""
        return self.batch is not None and not self.last


class Saver(Protocol):
    """The callback that a session works for."""

    model: Any
    params: Any

    def due_after(self, batches: int) -> bool:
        """Return whether to save, now that so many more batches are finished."""

    def due_at_epoch_end(self, logs: Mapping[str, Any], *, last: bool) -> bool:
        """Return whether to save at an epoch's end; `last` where training ends with it."""

    def save_at(self, moment: Moment) -> bool:
        """Save, or hand over; returns whether that was done."""

    def saves_begin(self, store: CheckpointStore) -> None:
        """Get ready to save."""

    def look_after_saves(self) -> None:
        """Hear of saves that are done, and make ready for the first one."""

    def has_waited(self, seconds: float) -> None:
        """Hear for how long the training has waited for what is no save."""

    def saves_end(self, error: BaseException | None) -> None:
        """Wait for what is on its way."""

    def fit_begins(self, store: CheckpointStore) -> None:
        """Prepare for a fit; nothing is loaded or saved yet."""

    def fit_ended(self, *, complete: bool) -> None:
        """Hear that the fit ended by itself; `complete` where it reached its last epoch."""

    def progress(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of the callback itself a fit needs that is resumed from what is about to be saved."""

    def set_progress(self, saved: Mapping[str, Any]) -> None:
        """Take over what `progress` returned."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a validation changes, as it was before.

    Attributes:
        values: Copies of metrics and seed generators as the backend has them, by the variables' ids.
        generators: The global random generators; None for the present ones.
    """

    values: Mapping[int, Any] = field(default_factory=dict)
    generators: GlobalGenerators | None = None

    @classmethod
    def of(cls, model: Any) -> Self:
        """Return what a validation of a model is about to change."""
        weights = {id(one) for one in model.weights}
        everything = [*model.variables, *model.metrics_variables]
        left_out = {id(one): one for one in everything if id(one) not in weights}
        copies = independent_copies(list(left_out.values()))
        return cls(dict(zip(left_out, copies, strict=True)), random_state.capture())

    def state(self, values: Mapping[str, Any], kinds: VariableKinds | None) -> FitState:
        """Return the state of a fit with these values in the place of the present ones.

        Args:
            values: Where the parts of the fit stand.
            kinds: The model's variables, where these were just looked for.
        """
        arrays = {key: host_array(value) for key, value in self.values.items()}
        return FitState(values=values, overrides=arrays, generators=self.generators, variables=kinds)


def plain_logs(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return logs as numbers, and as arrays what is none."""
    numbers = {}
    for name, value in logs.items():
        number = scalar(value)
        numbers[str(name)] = (
            np.array(host_array(value)) if number is None and hasattr(value, "shape") else number
        )
    return numbers
