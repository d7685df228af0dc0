"""What is saved of a fit beside its model: where callbacks and data stand, and what an optimizer does not tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ckptstore.formats.snapshot import FitState, VariableKinds
from ckptstore.keras.state import callbacks, optimizers
from ckptstore.metrics import scalar
from ckptstore.training.data.replay import Iteration
from ckptstore.training.session.position import FitPosition
from ckptstore.training.session.save_point import Moment, Saver


def values_of(
    saver: Saver,
    siblings: Sequence[Any],
    iteration: Iteration,
    logs: Mapping[str, Any],
    *,
    in_epoch: bool,
    kinds: VariableKinds | None = None,
) -> dict[str, Any]:
    """Return where the parts of a fit stand.

    Args:
        saver: The callback that saves.
        siblings: The others of the fit.
        iteration: Of its data.
        logs: The logs of the last batch, or of the epoch.
        in_epoch: False at an epoch's end.
        kinds: The model's variables, where these were just looked for.
    """
    model = saver.model
    return {
        "saver": saver.progress(logs),
        "stopped": bool(model.stop_training),
        "epochs": iteration.epochs,
        "callbacks": callbacks.get_states(siblings),
        "data": iteration.position(in_epoch=in_epoch),
        optimizers.RATES: optimizers.learning_rates(model),
        optimizers.TRAINED: optimizers.trained_indices(model, kinds and kinds[0]),
    }


def moment_of(
    position: FitPosition, batch: int | None, logs: Mapping[str, Any], fit: FitState, *, last: bool
) -> Moment:
    """Return a moment to be saved; after a loss that is not finite it is none to go on from."""
    loss = scalar(logs.get("loss"))
    return Moment(
        epoch=position.epoch,
        batch=batch,
        step=position.step,
        logs=logs,
        fit=fit,
        resumable=loss is None or math.isfinite(loss),
        last=last,
    )
