"""Better direction of a model's compiled metrics, as their classes define it, also before they are built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras


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
