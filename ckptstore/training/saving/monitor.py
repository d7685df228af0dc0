"""The quantity that a callback watches: which way is better, and whether a value beats the best so far."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from ckptstore.errors import InvalidArgumentError
from ckptstore.keras.private import metric_directions
from ckptstore.metrics import is_better, mode_of, scalar
from ckptstore.records import Mode
from ckptstore.store.store import CheckpointStore


class Verdict(Enum):
    """What a new value is, against the best."""

    BETTER = auto()
    NOT_BETTER = auto()
    MISSING = auto()
    NOT_SCALAR = auto()
    NAN = auto()


def resolve_mode(monitor: str, mode: str, model: Any, *, callback: str) -> Mode:
    """Return whether lower or higher is better, before the first batch.

    ``"auto"`` asks, in this order: the class of the compiled metric of that name, as Keras does; the name.

    Args:
        monitor: Name of the log, with or without ``val_``.
        mode: ``"auto"``, ``"min"`` or ``"max"``.
        model: The model about to be trained.
        callback: Name of the callback, for the message.

    Raises:
        InvalidArgumentError: Nothing tells, in Keras' words.
    """
    if mode in ("min", "max"):
        return "min" if mode == "min" else "max"
    name = monitor.removeprefix("val_")
    if name == "loss":
        return "min"
    direction = _direction(name, metric_directions(model))
    if direction is not None:
        return "max" if direction == "up" else "min"
    by_name = mode_of(monitor)
    if by_name is None:
        raise InvalidArgumentError(
            argument="mode",
            value=mode,
            reason=f"{callback} callback received monitor={monitor}, but Keras isn't able to automatically "
            "determine whether that metric should be maximized or minimized. Pass `mode='max'` in order to "
            "monitor based on the highest metric value, or pass `mode='min'` in order to use the lowest "
            "value.",
        )
    return by_name


def _direction(name: str, known: Mapping[str, str]) -> str | None:
    if name in known:
        return known[name]
    # With several outputs a metric's log is named after its output, too.
    ends = {direction for metric, direction in known.items() if name.endswith(f"_{metric}")}
    return ends.pop() if len(ends) == 1 else None


def judge(value: Any, best: float | None, mode: Mode) -> Verdict:
    """Say what a log's value is against the best so far.

    Args:
        value: The log: a number, a backend scalar, anything, or None where there is no such log.
        best: The best so far, or None.
        mode: Which way is better.

    Example:
        >>> judge(0.5, None, "min"), judge(0.5, 0.4, "min"), judge(float("nan"), None, "min")
        (<Verdict.BETTER: 1>, <Verdict.NOT_BETTER: 2>, <Verdict.NAN: 5>)
    """
    if value is None:
        return Verdict.MISSING
    number = scalar(value)
    if number is None:
        return Verdict.NOT_SCALAR
    if math.isnan(number):
        return Verdict.NAN
    return Verdict.BETTER if is_better(number, best, mode) else Verdict.NOT_BETTER


def best_shown(store: CheckpointStore, run: str, monitor: str, mode: Mode) -> float | None:
    """Return the value that must be beaten: that of the best checkpoint which a file of the run still shows.

    Without placeholders that is the one checkpoint at the path. A file that the user removed voids its value.
    """
    values: list[float] = []
    for path, version in store.published(run).items():
        checkpoint = store.get(version)
        if os.path.lexists(path) and checkpoint.state == "complete":
            value = checkpoint.metrics.get(monitor, math.nan)
            if not math.isnan(value):
                values.append(value)
    if not values:
        return None
    return min(values) if mode == "min" else max(values)
