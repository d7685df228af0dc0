"""How far a run has come, and how long it will still take: pure, from records."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from statistics import median

from ckptstore.records import Epoch, ObservedRun, Run

# Epochs that an epoch's length is taken from.
_LATEST_EPOCHS = 9


def finished_epochs(run: Run) -> int:
    """Return the number of finished epochs.

    Example:
        >>> run = Run(name="a", state="running", attempts=1, checkpoints=0, epoch=3, batch=7, batches=10)
        >>> finished_epochs(run)
        3
    """
    if run.epoch is None:
        return 0
    return run.epoch + (1 if _at_its_end(run) else 0)


def epochs_text(run: Run) -> str:
    """Return the finished epochs of all, as text; empty where nothing is known of them.

    Example:
        >>> epochs_text(Run(name="a", state="finished", attempts=1, checkpoints=1, epoch=9, epochs=10))
        '10/10'
    """
    if run.epoch is None and not run.epochs:
        return ""
    return f"{finished_epochs(run)}/{run.epochs}" if run.epochs else str(finished_epochs(run))


def batches_text(run: Run) -> str:
    """Return the finished batches of the epoch that a run is in, of all, as text; empty between two epochs."""
    if run.batch is None or _at_its_end(run):
        return ""
    return f"{finished_batches(run)}/{run.batches}" if run.batches else str(finished_batches(run))


def finished_batches(run: Run) -> int:
    """Return the number of finished batches of the epoch that the run is in; 0 between two epochs."""
    return 0 if run.batch is None else run.batch + 1


def _at_its_end(run: Run) -> bool:
    """Return True if the epoch that the run is in has ended; at its beginning it has no batch either."""
    if run.batch is not None or run.epoch is None:
        return run.state == "finished" and run.epoch is not None
    if run.step is None or not run.batches:
        return True
    return run.step > run.epoch * run.batches


def share_of_epoch(run: Run) -> float:
    """Return the share of the epoch that the run is in that is finished, 0 to 1; 0 where its length is unknown."""
    if not run.batches or _at_its_end(run):
        return 0.0
    return min(1.0, finished_batches(run) / run.batches)


def finished_share(run: Run) -> float | None:
    """Return the share of the whole training that is finished, 0 to 1, or None where its length is unknown."""
    if not run.epochs:
        return 1.0 if run.state == "finished" else None
    return min(1.0, (finished_epochs(run) + share_of_epoch(run)) / run.epochs)


def time_left_s(observed: ObservedRun) -> float | None:
    """Return the seconds until the run has trained all its epochs; None if it does not train, or where unknown.

    What is left of the epoch is counted in batches, by the present speed; whole epochs take as long as the latest
    did, validation and saves included, or, before there are some, as long as their batches.
    """
    run = observed.run
    if not run.is_active or run.state == "hung" or not run.epochs:
        return None
    epochs_left = run.epochs - finished_epochs(run)
    if epochs_left <= 0:
        return 0.0
    by_batches = run.batches / run.steps_per_s if run.batches and run.steps_per_s else None
    since = None if run.last_attempt is None else run.last_attempt.started_at
    by_epochs = epoch_s(observed.epochs, since)
    whole = by_batches if by_epochs is None else max(by_epochs, by_batches or 0.0)
    if whole is None:
        return None
    here = (1.0 - share_of_epoch(run)) * (by_batches if by_batches is not None else whole)
    return here + (epochs_left - 1) * whole


def epoch_s(epochs: Sequence[Epoch], since: datetime | None = None) -> float | None:
    """Return the usual seconds between the ends of the latest epochs, or None where fewer than two are known.

    Args:
        epochs: In order.
        since: Epochs that ended before it do not count, since the training may have stood still between.
    """
    ended = [
        epoch
        for epoch in epochs[-_LATEST_EPOCHS:]
        if epoch.batch is None and (since is None or epoch.created_at >= since)
    ]
    lengths = [
        (after.created_at - before.created_at).total_seconds()
        for before, after in pairwise(ended)
        if after.epoch == before.epoch + 1
    ]
    return median(lengths) if lengths and median(lengths) > 0 else None


def restarts(run: Run) -> int:
    """Return how often the run was started after the first time."""
    return max(0, run.attempts - 1)
