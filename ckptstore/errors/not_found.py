"""Errors of stores, checkpoints, runs and metrics that do not exist."""

from __future__ import annotations

from pathlib import Path

from ckptstore.errors.base import CheckpointStoreError


class NotFoundError(CheckpointStoreError, LookupError):
    """Something is not in the store, or there is no store."""


class StoreNotFoundError(NotFoundError):
    """There is no store at this path."""

    path: Path

    def __init__(self, *, path: Path) -> None:
        super().__init__(
            f"{path}: no store here (neither manifest.sqlite nor payloads)",
            hint="a store is created when it is first opened for writing; check the path",
            path=path,
        )


class CheckpointNotFoundError(NotFoundError):
    """No checkpoint has this ref."""

    ref: str
    store: Path

    def __init__(self, *, ref: object, store: Path) -> None:
        super().__init__(
            f"{store}: no checkpoint {str(ref)!r}",
            hint=f"to list the checkpoints: ckptstore ls {store}",
            ref=str(ref),
            store=store,
        )


class RunNotFoundError(NotFoundError):
    """The store has no run of this name."""

    run: str
    store: Path
    known: tuple[str, ...]

    def __init__(self, *, run: str, store: Path, known: tuple[str, ...] = ()) -> None:
        super().__init__(
            f"{store}: no run {run!r}",
            hint=f"runs here: {_listed(known)}",
            run=run,
            store=store,
            known=known,
        )


class NoResumePointError(NotFoundError):
    """A run has checkpoints, and none of them carries the training state that a resume needs."""

    run: str | None
    store: Path
    latest: int

    def __init__(self, *, run: str | None, store: Path, latest: int) -> None:
        which = "the store" if run is None else f"run {run!r}"
        super().__init__(
            f"{store}: {which} has checkpoints (the latest is version {latest}), but none can be resumed from: "
            "all were saved without training state, or with a loss that was not finite",
            hint="save without weights_only=True and resumable=False (of a loop by hand: with "
            "objects={'optimizer': optimizer}); to load the weights alone: "
            f"store.restore({latest}, model); to start the run over: store.begin(run)",
            run=run,
            store=store,
            latest=latest,
        )


class MetricNotFoundError(NotFoundError):
    """No checkpoint recorded this metric.

    Attributes:
        known: The metrics that checkpoints have.
        in_epochs: True if epochs have it that were not saved, or whose checkpoints are removed.
    """

    metric: str
    store: Path
    known: tuple[str, ...]
    in_epochs: bool

    def __init__(
        self, *, metric: str, store: Path, known: tuple[str, ...] = (), in_epochs: bool = False
    ) -> None:
        elsewhere = (
            f"it is known of epochs that have no checkpoint (ckptstore history {store}); "
            f"StoreCheckpoint(..., monitor={metric!r}) saves the best of them; "
        )
        super().__init__(
            f"{store}: no checkpoint has a metric {metric!r}",
            hint=f"{elsewhere if in_epochs else ''}metrics here: {_listed(known)}",
            metric=metric,
            store=store,
            known=known,
            in_epochs=in_epochs,
        )


def _listed(names: tuple[str, ...], max_shown: int = 12) -> str:
    if not names:
        return "none"
    rest = f" and {len(names) - max_shown} more" if len(names) > max_shown else ""
    return ", ".join(names[:max_shown]) + rest


class LogNotFoundError(NotFoundError):
    """No output of this training is kept; `run` and `attempt` are None where any would do."""

    store: Path
    run: str | None
    attempt: int | None

    def __init__(self, *, store: Path, run: str | None = None, attempt: int | None = None) -> None:
        what = "" if attempt is None else f" of attempt {attempt}"
        whose = "" if run is None else f" of run {run!r}"
        super().__init__(
            f"{store}: no log{what}{whose}",
            hint=f"output is kept of what ckptstore run starts; to list the logs: ckptstore logs {store} --list",
            store=store,
            run=run,
            attempt=attempt,
        )
