"""A model's metrics: their better direction, as their classes define it, and whether the logged loss is a mean."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras

from ckptstore.keras.private.backends.jax_train_state import synced


def metric_directions(model: Any) -> dict[str, str]:
    """Return ``"up"`` or ``"down"`` by metric name, for compiled metrics whose class defines it.

    Keras builds compiled metrics with the first batch; until then they are the arguments of `compile`.
    """
    found: dict[str, str] = {}
    for metric in _compiled_metrics(model):
        name = metric if isinstance(metric, str) else getattr(metric, "name", None)
        direction = getattr(_metric_object(metric), "_direction", None)
        if isinstance(name, str) and direction in ("up", "down"):
            found.setdefault(name, direction)
    return found


def logs_mean_loss(model: Any, logged: float | None = None) -> bool | None:
    """Return whether the loss in the logs of a batch is the mean over the epoch so far, as Keras' own step logs it.

    Args:
        model: The model of the running fit.
        logged: The loss in the logs of the epoch's second batch.

    Returns:
        False if it is the batch's own; None if the model has a step of its own, and `logged` was not given. Such a
        step may log a mean under another name than the metric's.
    """
    if type(model).train_step is keras.Model.train_step:
        return True
    means = [metric for metric in model.metrics if isinstance(metric, keras.metrics.Mean)]
    if not means:
        return False
    if logged is None:
        return None
    synced(model)
    return any(math.isclose(float(mean.result()), logged, rel_tol=1e-4) for mean in means)


def _compiled_metrics(model: Any) -> Iterator[Any]:
    container = getattr(model, "_compile_metrics", None)
    if container is None:
        return
    yield from container.metrics
    for given in ("_user_metrics", "_user_weighted_metrics"):
        yield from keras.tree.flatten(getattr(container, given, None))


def _metric_object(metric: Any) -> Any:
    if not isinstance(metric, str):
        return metric
    try:
        return keras.metrics.get(metric)
    except (ValueError, TypeError):
        # The name's meaning depends on the model's output, or its metric needs arguments.
        return None
