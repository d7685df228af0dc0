"""Records of checkpoints, events and claims."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import keras

Format = Literal["keras", "weights", "h5", "sharded"]
Mode = Literal["min", "max"]
State = Literal["complete", "missing", "damaged", "deleting"]

# The kind of the event of the checkpoint at the end of a fit's last epoch.
FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One immutable payload file, and what the manifest records about it.

    Attributes:
        version: Id within the store; increases, is never reused.
        run: Name of the training run.
        epoch: Zero-based index of the epoch that it was taken in.
        batch: Zero-based index of the last finished train batch, or None at the epoch's end.
        step: Finished train batches of the run so far, or None where the writer did not count.
        metrics: Every metric known at the save; values may be NaN or infinite.
        path: The payload, absolute; the file itself where the store keeps payloads in local files.
        nbytes: Size of the payload in bytes.
        digest: ``"xxh3_128:<32 hex digits>"`` of the whole payload.
        created_at: When the save began; aware, UTC.
        tags: Names given to it, sorted.
        pinned: True when retention must not remove it.
        format: ``"keras"`` (whole model), ``"weights"``, ``"h5"`` (Keras' older whole-model file), or ``"sharded"`` (a
            directory that several processes can write).
        state: ``"complete"``; ``"missing"`` or ``"damaged"`` when its file was found so; ``"deleting"``.
        resumable: True when the payload carries training state, so that a run can resume from it.
        extra: JSON that the writer stored with it, or None.
        blocked_s: Seconds that training waited for this save, up to the commit.
        total_s: Seconds from the call to the commit.
    """

    version: int
    run: str
    epoch: int
    batch: int | None
    step: int | None
    metrics: Mapping[str, float] = field(hash=False)
    path: Path
    nbytes: int
    digest: str
    created_at: datetime
    tags: tuple[str, ...] = ()
    pinned: bool = False
    format: Format = "keras"
    state: State = "complete"
    resumable: bool = False
    extra: Mapping[str, Any] | None = field(default=None, hash=False)
    blocked_s: float | None = None
    total_s: float | None = None

    @property
    def payload(self) -> str:
        """The payload's name in its store."""
        return self.path.name

    @property
    def store_path(self) -> Path:
        """The directory of the store."""
        return self.path.parent.parent

    def load_model(self, **kwargs: Any) -> keras.Model:
        """Verify the payload's digest, then load the whole model with Keras.

        Args:
            **kwargs: Passed to `keras.saving.load_model` (``custom_objects``, ``compile``, ``safe_mode``).

        Returns:
            The model, compiled as it was saved unless ``compile=False``.

        Raises:
            CorruptPayloadError: The file is not the one that was saved.
            InvalidArgumentError: The checkpoint holds weights only.
        """
        from ckptstore.records.frameworks import adapter_named

        return adapter_named("keras").load_model(self, **kwargs)

    def load_weights(self, model: keras.Model) -> None:
        """Verify the payload's digest, then load its weights into a built model with Keras.

        Raises:
            CorruptPayloadError: The file is not the one that was saved.
            ModelMismatchError: The weights do not fit; the model is unchanged.
            RefusedByLayerError: A layer could not load them; `put_back` tells whether the model is as it was.
        """
        from ckptstore.records.frameworks import adapter_named

        adapter_named("keras").load_weights(self, model)

    def to_json(self) -> dict[str, Any]:
        """Return the checkpoint as the JSON object of the command line.

        Times are ISO 8601 in UTC; NaN and infinite metrics are the strings ``"NaN"``, ``"Infinity"``
        and ``"-Infinity"``, since JSON has no numbers for them.
        """
        return {
            "version": self.version,
            "run": self.run,
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "metrics": {name: json_number(value) for name, value in self.metrics.items()},
            "path": str(self.path),
            "nbytes": self.nbytes,
            "digest": self.digest,
            "created_at": json_time(self.created_at),
            "tags": list(self.tags),
            "pinned": self.pinned,
            "format": self.format,
            "state": self.state,
            "resumable": self.resumable,
            "extra": None if self.extra is None else dict(self.extra),
            "blocked_s": self.blocked_s,
            "total_s": self.total_s,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, store: Path | None = None) -> Checkpoint:
        """Return the checkpoint of a JSON object that `to_json` has returned.

        Args:
            value: The object.
            store: The store's directory in this process, where another process may see it under another path.
        """
        path = Path(value["path"])
        return cls(
            **{
                **value,
                "metrics": {name: float(metric) for name, metric in value["metrics"].items()},
                "path": path if store is None else store / path.parent.name / path.name,
                "created_at": datetime.fromisoformat(value["created_at"]),
                "tags": tuple(value["tags"]),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem that `verify`, `repair` or `rebuild` found.

    Attributes:
        kind: ``"missing"``, ``"size"``, ``"digest"``, ``"identity"`` (the file is another
            checkpoint's), ``"damaged"`` (found so before, and quarantined),
            ``"found"`` (marked as missing or damaged, and there again), ``"unreadable"`` (the disk refuses to read it,
            which does not mean that it is damaged), ``"orphan"`` (a payload without a row) or ``"manifest"``.
        detail: One line for a person.
        version: The checkpoint concerned, or None.
        path: The file concerned, absolute, or None.
        action: What `repair` did about it; None where nothing was done.
    """

    kind: str
    detail: str
    version: int | None = None
    path: Path | None = None
    action: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the problem as a JSON object; `action` is there only if something was done."""
        document: dict[str, Any] = {
            "kind": self.kind,
            "detail": self.detail,
            "version": self.version,
            "path": None if self.path is None else str(self.path),
        }
        return document if self.action is None else {**document, "action": self.action}


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedEpoch:
    """An epoch that has ended, and whose metrics go to the manifest with a later checkpoint.

    Attributes:
        epoch: Zero-based index of the epoch.
        step: Finished train batches of the run at its end, or None where the writer did not count.
        ended_at: When it ended; aware, UTC.
        metrics: Every metric known at its end; values may be NaN or infinite.
    """

    epoch: int
    step: int | None
    ended_at: datetime
    metrics: Mapping[str, float] = field(hash=False)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "ended_at": json_time(self.ended_at),
            "metrics": {name: json_number(value) for name, value in self.metrics.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCheckpoint:
    """A payload that has its final name and is about to get its manifest row.

    Attributes:
        earlier_epochs: Epochs that ended before it and that no checkpoint before it is known to have recorded.
    """

    version: int
    run: str
    epoch: int
    batch: int | None
    step: int | None
    metrics: Mapping[str, float]
    file: str
    nbytes: int
    digest: str
    created_at: datetime
    format: Format
    resumable: bool
    tags: tuple[str, ...] = ()
    pinned: bool = False
    extra: Mapping[str, Any] | None = None
    blocked_s: float | None = None
    total_s: float | None = None
    earlier_epochs: tuple[FinishedEpoch, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The checkpoint that a user's path shows; `pending` until the path has been switched to it.

    Attributes:
        path: The published path, relative to the store's directory where possible, else absolute.
        version: The checkpoint that it shows, or is about to show.
        pending: True between the commit and the switch.
    """

    path: str
    run: str
    version: int
    pending: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The process that writes, or last wrote, a run."""

    host: str
    pid: int
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right of a process, and of those that work for it, to write one run until another process claims it.

    Attributes:
        run: The run.
        store: The store's id.
        token: The fencing token, drawn when the process became the run's writer.
    """

    run: str
    store: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a store, kept for a person to read.

    Attributes:
        at: When it was recorded; aware, UTC.
        kind: What happened, such as ``"saved"``.
        run: The run concerned, or None.
        version: The checkpoint concerned, which may have been removed, or None.
        detail: Further facts (JSON), or None.
    """

    at: datetime
    kind: str
    run: str | None
    version: int | None
    detail: Mapping[str, Any] | None = field(default=None, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """A run's metrics in one epoch, also where it was not saved itself, or its checkpoints have been removed.

    Attributes:
        epoch: Zero-based index of the epoch.
        batch: None where the epoch was finished; else the zero-based batch that the metrics go up to.
        step: Finished train batches of the run, or None where the writer did not count.
        version: The checkpoint that recorded them, which may have been removed.
        created_at: When the epoch ended or, while it has not, when that was saved; aware, UTC.
        metrics: Every metric known then; values may be NaN or infinite.
    """

    epoch: int
    batch: int | None
    step: int | None
    version: int
    created_at: datetime
    metrics: Mapping[str, float] = field(hash=False)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "version": self.version,
            "created_at": json_time(self.created_at),
            "metrics": {name: json_number(value) for name, value in self.metrics.items()},
        }


class RowKey(NamedTuple):
    """The facts about a checkpoint that retention reads when it scans very many."""

    version: int
    epoch: int
    batch: int | None
    step: int | None
    created_at: datetime
    is_tagged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionProgress:
    """How far retention has come with a run, recorded after each check.

    Attributes:
        policy: The policy by which the whole run was checked.
        event_id: The newest event that the check saw.
        newest_at: Time of the newest save; aware, UTC; None where there is none.
        nbytes: Bytes of the checkpoints that it kept.
    """

    policy: str
    event_id: int
    newest_at: datetime | None
    nbytes: int

    def to_row(self) -> dict[str, object]:
        """Return it as columns."""
        return {
            "policy": self.policy,
            "event_id": self.event_id,
            "newest_at": self.newest_at,
            "nbytes": self.nbytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """A resume of a run: when, and from which checkpoint.

    Attributes:
        at: When the run was started again; aware, UTC.
        version: The checkpoint that it resumed from, which may have been removed.
        epoch: Zero-based epoch of that checkpoint.
        batch: Zero-based index of its last finished batch, or None at the epoch's end.
        interrupted: False if the run had come to its end with that checkpoint, and was started again.
    """

    at: datetime
    version: int
    epoch: int
    batch: int | None
    interrupted: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "at": json_time(self.at),
            "version": self.version,
            "epoch": self.epoch,
            "batch": self.batch,
            "interrupted": self.interrupted,
        }


def json_number(value: float) -> float | str:
    """Return a float in a form that JSON can hold.

    Example:
        >>> json_number(0.5), json_number(float("nan")), json_number(float("-inf"))
        (0.5, 'NaN', '-Infinity')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def json_time(time: datetime) -> str:
    """Return an aware time as ISO 8601 in UTC, with microseconds.

    Example:
        >>> json_time(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
        '2026-01-02T03:04:05.000000+00:00'
    """
    return time.astimezone(UTC).isoformat(timespec="microseconds")
