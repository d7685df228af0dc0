"""The monitored metric: which direction is better, whether a value is the best so far, and the best itself."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from ckptstore.errors import InvalidArgumentError, MetricNotFoundError
from ckptstore.keras.private import metric_directions
from ckptstore.metrics import better_of, is_better, mode_of, scalar
from ckptstore.records import Checkpoint, Mode
from ckptstore.store.store import CheckpointStore
from ckptstore.training.job.fit_store import FitStore

DEFAULT_MONITOR = "val_loss"


class Verdict(Enum):
    """A new value, compared with the best so far."""

    BETTER = auto()
    NOT_BETTER = auto()
    MISSING = auto()
    NOT_SCALAR = auto()
    NAN = auto()


def resolve_mode(monitor: str, mode: str, model: Any, *, callback: str) -> Mode:
    """Return ``"min"`` or ``"max"``, before the first batch.

    ``"auto"`` looks, in this order, at the class of the compiled metric of that name, as Keras does, and at the name.

    Args:
        monitor: Name of the log, with or without ``val_``.
        mode: ``"auto"``, ``"min"`` or ``"max"``.
        model: The model about to be trained.
        callback: Name of the callback, for the message.

    Raises:
        InvalidArgumentError: Neither gives the direction; in Keras' words.
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
    """Compare a log's value with the best so far.

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


class MonitoredMetric:
    """The metric that a callback monitors, and its best value so far.

    A value counts as the best from the moment that its save is handed over, so that the next one is compared with it.
    If that save fails, the best is again that of the last save that succeeded.

    Args:
        name: Name of the log.
        mode: ``"auto"``, ``"min"`` or ``"max"``.
        threshold: The best to begin with, or None.
        callback: Name of the callback, for messages.

    Attributes:
        name: Name of the log.
        mode: ``"min"`` or ``"max"``; None until `resolve`, and if the direction is not known.
        best: The best value so far, or None.

    Example:
        >>> import keras
        >>> metric = MonitoredMetric("val_loss", threshold=0.5)
        >>> metric.resolve(keras.Model())
        'min'
        >>> metric.improvement({"val_loss": 0.6}), metric.improvement({"val_loss": 0.4})
        (None, 0.4)
        >>> metric.begin_save(0.4)
        >>> metric.best
        0.4
        >>> metric.settle(0.4, saved=False)
        >>> metric.best
        0.5
    """

    def __init__(
        self,
        name: str,
        mode: str = "auto",
        *,
        threshold: float | None = None,
        callback: str = "StoreCheckpoint",
    ) -> None:
        self.name = name
        self.mode: Mode | None = None
        self._option = mode
        self._threshold = threshold
        self._callback = callback
        self.best = self._saved = threshold

    def resolve(self, model: Any) -> Mode:
        """Find out the direction, see `resolve_mode`.

        Raises:
            InvalidArgumentError: The direction cannot be found out.
        """
        self.mode = resolve_mode(self.name, self._option, model, callback=self._callback)
        return self.mode

    @property
    def with_mode(self) -> tuple[str, Mode] | None:
        """The metric's name and direction, as the store wants them; None where the direction is not known."""
        return None if self.mode is None else (self.name, self.mode)

    def begin(self, best: float | None) -> None:
        """Begin with a best value, such as one in the store."""
        self.best = self._saved = best

    def begin_with_published(self, store: CheckpointStore, run: str) -> str | None:
        """Begin with the best value that a published file of the run shows, or the threshold if that is better.

        Returns:
            What changed, if the file was chosen by another metric or in another direction; else None.
        """
        assert self.mode is not None
        shown = best_shown(store, run, self.name, self.mode)
        self.begin(better_of(self._threshold, shown, self.mode))
        known = store.monitors(run)
        if not known or known.get(self.name) == self.mode or not store.published(run):
            return None
        before = ", ".join(f"monitor={name!r}, mode={mode!r}" for name, mode in known.items())
        return (
            f"the file of run {run} was saved with {before}, and is compared with monitor={self.name!r}, "
            f"mode={self.mode!r} from now on: best is {self.best}; for a new best remove the file, or take another name"
        )

    # --- values ------------------------------------------------------------------------------------

    def judge(self, value: Any) -> Verdict:
        """Compare a log's value with the best so far; the direction must be known."""
        assert self.mode is not None
        return judge(value, self.best, self.mode)

    def improvement(self, metrics: Mapping[str, Any]) -> float | None:
        """Return the metric's value if it is the best so far, else None."""
        if self.mode is None:
            return None
        value = metrics.get(self.name)
        return scalar(value) if self.judge(value) is Verdict.BETTER else None

    def is_missed_in(self, metrics: Mapping[str, float], *, required: bool) -> bool:
        """Return True if the metrics of an epoch lack this one, and its user has reason to expect it.

        Without a validation, the callbacks' default is expected only if the best is all that is wanted.
        """
        is_default = self.name == DEFAULT_MONITOR and not any(name.startswith("val_") for name in metrics)
        return self.name not in metrics and (required or not is_default)

    def begin_save(self, value: float | None) -> None:
        """Take a value whose save is on its way as the best; None for a save that is not the best."""
        if value is not None:
            self.best = value

    def settle(self, value: float | None, *, saved: bool) -> None:
        """Record the outcome of a save that was the best with this value, or that was not the best (None)."""
        if not saved:
            self.best = self._saved
        elif value is not None and self.mode is not None:
            self._saved = value
            self.best = better_of(self.best, value, self.mode)

    # --- a fit that is resumed -----------------------------------------------------------------------

    def state(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the best value so far, that of the logs included, as training state."""
        value = self.improvement(logs)
        return {
            "best": self.best if value is None else logs[self.name],
            "monitor": self.name,
            "mode": self.mode,
        }

    def set_state(self, saved: Mapping[str, Any], store: FitStore, run: str) -> str | None:
        """Continue with the value that `state` returned; where that is of another metric, with the store's best.

        Returns:
            What changed, and what that means for the best; None if the metric and its direction are the same.
        """
        live = {"monitor": self.name, "mode": self.mode}
        if all(saved.get(name, value) == value for name, value in live.items()):
            self.begin(saved.get("best", self.best))
            return None
        found = None if self.mode is None else self._best_in(store, run)
        value = self._threshold if found is None else found.metrics[self.name]
        self.begin(value if self.mode is None else better_of(self._threshold, value, self.mode))
        return _changed(saved, live, self.best, found)

    def _best_in(self, store: FitStore, run: str) -> Checkpoint | None:
        try:
            return store.best(self.name, mode=self.mode, run=run)
        except MetricNotFoundError:
            return None


def _changed(
    saved: Mapping[str, Any], live: Mapping[str, Any], best: float | None, found: Checkpoint | None
) -> str:
    before, now = (f"monitor={side.get('monitor')!r}, mode={side.get('mode')!r}" for side in (saved, live))
    by = "" if found is None else f" (version {found.version})"
    return (
        f"the run was trained with {before}, and continues with {now}: best is {best}{by}, of the checkpoints that are "
        "still in the store; for the best of the whole run use the former monitor and mode, or begin another run"
    )


def best_shown(store: CheckpointStore, run: str, monitor: str, mode: Mode) -> float | None:
    """Return the best value among the checkpoints that the run's published files show, or None.

    Without placeholders that is the one checkpoint at the path. The value of a file that the user removed is void.
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
