"""`CheckpointStore`: the façade over payloads, manifest and locks. Knows neither Keras nor terminals."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from operator import index
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ckptstore.adapters import adapter_for
from ckptstore.commit import Committer, SaveRequest, has_its_size
from ckptstore.errors import (
    CheckpointNotFoundError,
    CorruptManifestError,
    InvalidArgumentError,
    MetricNotFoundError,
    ReadOnlyError,
    RunLockedError,
    StoreNotFoundError,
)
from ckptstore.layout import Layout, absolute, find_store, outside, shown_at
from ckptstore.locks import RunLock, store_lock
from ckptstore.manifest import COMPLETE_ONLY, Manifest
from ckptstore.metric_modes import mode_of
from ckptstore.names import (
    check_extra,
    check_metric_name,
    check_metrics,
    check_position,
    check_run,
    check_tag,
)
from ckptstore.records import SUFFIXES, Checkpoint, Format, Holder, Mode, Problem, State
from ckptstore.retention import Policy

if TYPE_CHECKING:
    import keras

    from ckptstore.verification import Progress

Ref = str | int | Checkpoint


class CheckpointStore:
    """A directory of checkpoints with a manifest that can be asked for them.

    Opening for writing makes the store if there is none, upgrades an older schema, and finishes or undoes what a dead
    writer left; a crash during the opening is mended by the next one. Opening with ``read_only=True`` writes nothing
    and waits for nobody.

    One store may be used by many threads and processes; each run has one writer at a time. After a fork the child may
    read.

    Args:
        path: The store's directory; or the folder of a drop-in callback, whose store is its ``.ckptstore``.
        read_only: True to query only.

    Raises:
        StoreNotFoundError: Read-only, and there is no store.
        NotAStoreError: The path is a file, or its ``manifest.sqlite`` is somebody else's.
        CorruptManifestError: The manifest cannot be read; nothing was changed.
        SchemaTooNewError: A newer ckptstore made it.
        SchemaTooOldError: Read-only, and an older one did.
        StoreLockedError: Another process held the store's lock for too long.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, CheckpointStore(folder) as store:
        ...     print(store.latest())
        None
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.read_only = read_only
        self._runs: dict[str, RunLock] = {}
        self._pid = os.getpid()
        try:
            self.path = find_store(path)
        except StoreNotFoundError:
            if read_only:
                raise
            self.path = absolute(path)
        self._layout = Layout(self.path)
        self._manifest = self._open_for_reading() if read_only else self._open_for_writing()
        self._committer = Committer(self._layout, self._manifest)

    def _open_for_reading(self) -> Manifest:
        if not os.path.lexists(self._layout.manifest):
            raise CorruptManifestError(
                path=self._layout.manifest, reason="it is missing, though there are payloads"
            )
        return Manifest.open(self._layout.manifest, read_only=True)

    def _open_for_writing(self) -> Manifest:
        if os.path.lexists(self._layout.manifest):
            Manifest.check(self._layout.manifest)
        from ckptstore.recovery import reconcile  # reads payloads; a query can do without

        self._layout.make()
        with store_lock(self._layout.locks):
            manifest = Manifest.open(self._layout.manifest)
            try:
                reconcile(self._layout, manifest)
            except BaseException:
                manifest.close()
                raise
        return manifest

    def close(self) -> None:
        """Release runs, lease and connections. Nothing is pending: every save was durable when it returned."""
        runs, self._runs = self._runs, {}
        try:
            if not self.read_only:
                self._committer.close()
        finally:
            if self._pid == os.getpid():
                for lock in runs.values():
                    lock.release()
            self._manifest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CheckpointStore({str(self.path)!r}{', read_only=True' if self.read_only else ''})"

    def save(
        self,
        model: keras.Model,
        *,
        epoch: int,
        batch: int | None = None,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        run: str = "default",
        tags: Collection[str] = (),
        extra: Mapping[str, Any] | None = None,
        format: Format = "keras",
        optimizer: keras.Optimizer | None = None,
        weights_only: bool = False,
        publish: str | os.PathLike[str] | None = None,
        keep: Policy | None = None,
        monitor: tuple[str, Mode] | None = None,
    ) -> Checkpoint:
        """Save a model; when this returns, the checkpoint is durable, indexed, and shown at `publish`.

        A crash meanwhile leaves all older checkpoints as they were, and of this one nothing or the whole.

        Args:
            model: A built and compiled Keras model.
            epoch: Zero-based index of the epoch.
            batch: Zero-based index of the last finished train batch, or None at the epoch's end.
            step: Finished train batches of the run so far, or None.
            metrics: Scalars by name: numbers, or 0-d tensors.
            run: The run that it belongs to; this store writes it until `close`.
            tags: Names for it; one that another checkpoint has moves.
            extra: JSON to keep beside it.
            format: ``"keras"`` for the whole model, ``"weights"``, or ``"h5"`` for Keras' older whole-model file.
            optimizer: The optimizer of a loop written by hand, for a model that is not compiled.
            weights_only: True to save no optimizer and no training state.
            publish: A path at which the checkpoint is shown, by hard link where possible.
            keep: What stays of the run after this save; None keeps everything.
            monitor: A metric that is watched and its better direction: its best is never removed.

        Raises:
            InvalidArgumentError: An argument cannot be used; nothing changed.
            ModelNotReadyError: The model is not built or not compiled; nothing changed.
            RunLockedError: Another writer has the run.
            DiskFullError: There is no room; older checkpoints are as they were.
            StorageError: The disk failed; older checkpoints are as they were.
        """
        check_position(epoch, batch, step)
        request = SaveRequest(
            run=check_run(run),
            epoch=index(epoch),
            batch=None if batch is None else index(batch),
            step=None if step is None else index(step),
            metrics=check_metrics(metrics),
            tags=tuple(sorted({check_tag(tag) for tag in tags})),
            extra=check_extra(extra),
            publish=None if publish is None else outside(self.path, absolute(publish)),
            keep=keep,
            monitor=monitor,
        )
        if format not in SUFFIXES:
            raise InvalidArgumentError(
                argument="format", value=format, reason=f"must be one of {sorted(SUFFIXES)}"
            )
        self._check_writable("save")
        snapshot = adapter_for(model).snapshot(
            model, format=format, optimizer=optimizer, weights_only=weights_only
        )
        self.claim(run)
        return self._committer.commit(snapshot, request)

    def restore(
        self, ref: Ref, model: keras.Model, *, optimizer: keras.Optimizer | None = None
    ) -> Checkpoint:
        """Bring a checkpoint's weights, optimizer and training state back into a model; returns the checkpoint.

        The payload is verified and compared with the model before anything is touched.

        Args:
            ref: A version, ``"latest"``, ``"best:METRIC"``, ``"resume-point"``, a tag, or a `Checkpoint`.
            model: The model, built and compiled as it was when it was saved.
            optimizer: The optimizer of a loop written by hand, if one was passed to `save`.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
            CorruptPayloadError: The payload is damaged; the model is unchanged.
            ModelMismatchError: It does not fit the model, which is unchanged.
        """
        checkpoint = self.get(ref)
        adapter_for(model).restore(model, checkpoint, optimizer=optimizer)
        return checkpoint

    def claim(self, run: str) -> None:
        """Become the writer of a run, until `close`; saving does this by itself.

        Raises:
            RunLockedError: Another writer has it; says who.
        """
        self._check_writable("claim")
        check_run(run)
        if self._pid != os.getpid():
            self._runs, self._pid = {}, os.getpid()
        if run in self._runs:
            return
        try:
            lock = RunLock(self._layout.locks, run)
        except RunLockedError as error:
            holder = self._manifest.holder(run)
            if holder is None:
                raise
            raise RunLockedError(
                run=run, store=self.path, host=holder.host, pid=holder.pid, started_at=holder.started_at
            ) from error
        try:
            with store_lock(self._layout.locks):
                self._manifest.set_holder(
                    run, Holder(host=socket.gethostname(), pid=os.getpid(), started_at=datetime.now(UTC))
                )
        except BaseException:
            lock.release()
            raise
        self._runs[run] = lock

    def checkpoints(
        self, run: str | None = None, *, states: Collection[State] | None = COMPLETE_ONLY
    ) -> list[Checkpoint]:
        """Return a run's checkpoints, or all, oldest first.

        Args:
            run: The run; None for all runs.
            states: Which states to list; None for all, those with a missing or damaged payload too.
        """
        return self._manifest.checkpoints(run, states=states)

    def latest(self, run: str | None = None) -> Checkpoint | None:
        """Return the newest checkpoint, or None where there is none."""
        return self._manifest.latest(run)

    def best(self, metric: str, *, mode: Mode | None = None, run: str | None = None) -> Checkpoint | None:
        """Return the checkpoint with the best value of a metric, or None where there is none.

        NaN is never best; of equals the earlier is returned.

        Args:
            metric: The metric's name, as in Keras' logs.
            mode: ``"min"`` or ``"max"``; None for the direction that the run's callback watched it in, or else the
                one that its name tells.
            run: The run; None for all runs.

        Raises:
            MetricNotFoundError: There are checkpoints, but none has this metric.
            InvalidArgumentError: `mode` is needed: neither a callback nor the name tells the direction.
        """
        check_metric_name(metric)
        if mode not in ("min", "max", None):
            raise InvalidArgumentError(argument="mode", value=mode, reason="must be 'min' or 'max'")
        known = self._manifest.metric_names(run)
        if metric not in known:
            if self._manifest.latest(run) is None:
                return None
            raise MetricNotFoundError(metric=metric, store=self.path, known=tuple(known))
        direction = mode or self._manifest.monitored_mode(metric, run) or mode_of(metric)
        if direction is None:
            raise InvalidArgumentError(
                argument="mode",
                value=None,
                reason=f"whether {metric!r} is better low or high cannot be told from its name",
                hint="say mode='min' or mode='max' (--mode on the command line)",
            )
        return self._manifest.best(metric, direction, run)

    def resume_point(self, run: str | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that a run can go on from, or None where there is none.

        It carries training state, and its payload is there with its size; `restore` verifies its digest.
        """
        return next((point for point in self._manifest.resume_points(run) if has_its_size(point)), None)

    def get(self, ref: Ref) -> Checkpoint:
        """Return the checkpoint that a ref names.

        Args:
            ref: A version, ``"latest"``, ``"best:METRIC"``, ``"resume-point"``, a tag, or a `Checkpoint`.

        Raises:
            CheckpointNotFoundError: There is none.
        """
        found = ref if isinstance(ref, Checkpoint) else self._look_up(ref)
        if found is None:
            raise CheckpointNotFoundError(ref=ref, store=self.path)
        return found

    def _look_up(self, ref: str | int) -> Checkpoint | None:
        text = str(ref)
        if isinstance(ref, bool) or not isinstance(ref, str | int):
            raise InvalidArgumentError(argument="ref", value=ref, reason="must be a string or an integer")
        if text.isdecimal():
            # Versions have at most 18 digits; more would not fit the column that is asked.
            return self._manifest.get(int(text)) if len(text) <= 18 else None
        if text == "latest":
            return self.latest()
        if text == "resume-point":
            return self.resume_point()
        if text.startswith("best:"):
            return self.best(text.removeprefix("best:"))
        return self._manifest.by_tag(text)

    def runs(self) -> tuple[str, ...]:
        """Return the names of all runs."""
        return self._manifest.runs()

    def metric_names(self, run: str | None = None) -> tuple[str, ...]:
        """Return the names of all metrics that a run, or any run, has recorded."""
        return self._manifest.metric_names(run)

    def published(self, run: str) -> dict[Path, int]:
        """Return what a run has been made to show: versions by path, absolute; a path may be gone by now."""
        return {
            shown_at(self.path, one.path): one.version for one in self._manifest.published() if one.run == run
        }

    @property
    def schema_version(self) -> str:
        """The manifest's schema revision."""
        return self._manifest.schema_version

    def verify(self, *, deep: bool = True, progress: Progress | None = None) -> list[Problem]:
        """Compare manifest and files, both ways, and change nothing.

        Args:
            deep: Read and digest every payload; False compares names and sizes.
            progress: Called with numbers of bytes as they are done; their sum is that of all `nbytes`.

        Returns:
            The problems; an empty list when all is well.
        """
        from ckptstore.verification import verify as verify_store

        return verify_store(self._layout, self._manifest, deep=deep, progress=progress)

    def tag(self, ref: Ref, name: str) -> None:
        """Give a checkpoint a name, by which `get` finds it; a name that another one has moves, atomically.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
            InvalidArgumentError: It reads as another ref, or is not printable text.
        """
        self._check_writable("tag")
        check_tag(name)
        version = self.get(ref).version
        with store_lock(self._layout.locks):
            self._manifest.tag(version, name)

    def pin(self, ref: Ref, pinned: bool = True) -> None:
        """Keep a checkpoint whatever a retention policy says; ``pinned=False`` lets it go again.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
        """
        self._check_writable("pin")
        version = self.get(ref).version
        with store_lock(self._layout.locks):
            self._manifest.pin(version, pinned)

    def _check_writable(self, operation: str) -> None:
        if self.read_only:
            raise ReadOnlyError(store=self.path, operation=operation)
