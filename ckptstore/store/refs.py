"""Resolves refs: a version, "latest", "best:METRIC", "resume-point" or a tag."""

from __future__ import annotations

from pathlib import Path

from ckptstore.errors import InvalidArgumentError, MetricNotFoundError
from ckptstore.manifest.manifest import Manifest
from ckptstore.metrics import mode_of
from ckptstore.records import Checkpoint, Mode
from ckptstore.storage.integrity import size_matches
from ckptstore.validation import check_metric_name

RESUME_POINT = "resume-point"


def look_up(manifest: Manifest, store: Path, ref: str | int) -> Checkpoint | None:
    """Return the checkpoint that a ref names, or None if there is none, or if it is being removed.

    Raises:
        InvalidArgumentError: It is not a ref.
        MetricNotFoundError: It names the best by a metric that no checkpoint has.
    """
    found = _named(manifest, store, ref)
    return None if found is not None and found.state == "deleting" else found


def _named(manifest: Manifest, store: Path, ref: str | int) -> Checkpoint | None:
    text = str(ref)
    if isinstance(ref, bool) or not isinstance(ref, str | int):
        raise InvalidArgumentError(argument="ref", value=ref, reason="must be a string or an integer")
    if text.isdecimal():
        # Versions have at most 18 digits; more would not fit the column.
        return manifest.checkpoints.get(int(text)) if len(text) <= 18 else None
    if text == "latest":
        return manifest.checkpoints.latest()
    if text == RESUME_POINT:
        return resume_point(manifest, None)
    if text.startswith("best:"):
        return best(manifest, store, text.removeprefix("best:"), mode=None, run=None)
    return manifest.tags.checkpoint(text)


def resume_point(manifest: Manifest, run: str | None) -> Checkpoint | None:
    """Return the newest checkpoint that carries training state and whose payload is there with its size."""
    return next((point for point in manifest.checkpoints.resume_points(run) if size_matches(point)), None)


def best(
    manifest: Manifest, store: Path, metric: str, *, mode: Mode | None, run: str | None
) -> Checkpoint | None:
    """Return the best checkpoint by a metric; see `ckptstore.CheckpointStore.best`.

    Raises:
        MetricNotFoundError: There are checkpoints, but none has this metric.
        InvalidArgumentError: The better direction is not known.
    """
    direction = direction_of(manifest, store, metric, mode=mode, run=run)
    return None if direction is None else manifest.checkpoints.best(metric, direction, run)


def direction_of(
    manifest: Manifest, store: Path, metric: str, *, mode: Mode | None, run: str | None
) -> Mode | None:
    """Return a metric's better direction: the given, the watched or the usual one of its name; None for an empty store.

    Raises:
        MetricNotFoundError: There are checkpoints, but none has this metric.
        InvalidArgumentError: The better direction is not known.
    """
    check_metric_name(metric)
    if mode not in ("min", "max", None):
        raise InvalidArgumentError(argument="mode", value=mode, reason="must be 'min' or 'max'")
    known = manifest.metrics.names(run)
    if metric not in known:
        if manifest.checkpoints.latest(run) is None:
            return None
        in_epochs = manifest.epochs.best(metric, "max", run) is not None
        raise MetricNotFoundError(metric=metric, store=store, known=tuple(known), in_epochs=in_epochs)
    direction = mode or manifest.runs.monitored_mode(metric, run) or mode_of(metric)
    if direction is None:
        raise InvalidArgumentError(
            argument="mode",
            value=None,
            reason=f"whether {metric!r} is better low or high cannot be told from its name",
            hint="say mode='min' or mode='max' (--mode on the command line)",
        )
    return direction
