"""The reason to record for the end of a fit that no exception has ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from signal import Signals
from typing import Any, Protocol

from ckptstore.metrics import scalar
from ckptstore.training.job.fit_store import FitRecorder, FitStore


class TrainedRun(Protocol):
    """A run that is being trained."""

    @property
    def store(self) -> FitStore | None:
        """Its store while that is open."""

    @property
    def run(self) -> str:
        """Its name."""


def plan_end(
    trained: TrainedRun, logs: Mapping[str, Any], model: Any, *, bad: Mapping[str, Any] | None = None
) -> bool:
    """Note that a fit has come to its end, or was stopped by its loss; returns True if its last loss was finite.

    Args:
        trained: The run.
        logs: The last logs.
        model: The model, which says whether a callback has stopped the fit.
        bad: What is known of a loss that stopped it, or None.
    """
    loss = scalar(logs.get("loss"))
    is_finite = loss is None or math.isfinite(loss)
    if trained.store is not None:
        is_bad = bad is not None or (getattr(model, "stop_training", False) and not is_finite)
        trained.store.recorder.plan(trained.run, "nan" if is_bad else "finished", **(bad or {}))
    return is_finite


def plan_stop(recorder: FitRecorder, run: str, signal: Signals, error: BaseException | None) -> None:
    """Note that a signal has stopped a fit, which is saved, unless another error than a closed output has ended it.

    Of ``train.py | tee log`` the signal has ended both.
    """
    if error is None or isinstance(error, BrokenPipeError):
        recorder.plan(run, "interrupted" if signal == Signals.SIGINT else "preempted", signal=signal.name)
