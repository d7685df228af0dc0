"""`CheckpointStore`: the façade over payloads, manifest and locks. Knows neither Keras nor terminals."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ckptstore.commit.open import open_for_reading, open_for_writing
from ckptstore.errors import (
    ModelMismatchError,
    NoResumePointError,
    RunMismatchError,
    StoreNotFoundError,
)
from ckptstore.records import Checkpoint, Problem
from ckptstore.storage.layout import Layout, absolute, find_store
from ckptstore.storage.locks import store_lock
from ckptstore.store import opened_stores
from ckptstore.store.model_adapter import adapter_for
from ckptstore.store.reader import Ref
from ckptstore.store.refs import RESUME_POINT
from ckptstore.store.writer import StoreWriter
from ckptstore.validation import check_objects

if TYPE_CHECKING:
    from keras import Model, Optimizer

    from ckptstore.store.verify import Progress
    from ckptstore.transfer.copy import Copied
    from ckptstore.transfer.export import Exported
    from ckptstore.transfer.import_files import Imported


class CheckpointStore(StoreWriter):
    """A directory of checkpoints with a manifest that answers queries about them.

    Opening for writing makes the store if there is none, upgrades an older schema, and finishes or undoes what a dead
    writer left; a crash during the opening is repaired by the next one. Opening with ``read_only=True`` writes nothing
    and waits for nobody.

    Many threads and processes may use one store; each run has one writer at a time. After a fork the child may read.

    Args:
        path: The store's directory; or the folder of a drop-in callback, whose store is its ``.ckptstore``.
        read_only: True to query only.

    Raises:
        StoreNotFoundError: Read-only, and there is no store.
        NotAStoreError: The path is a file, or its ``manifest.sqlite`` belongs to another program.
        CorruptManifestError: The manifest cannot be read; nothing was changed.
        SchemaTooNewError: A newer ckptstore made the store.
        SchemaTooOldError: Read-only, and an older ckptstore made the store.
        StoreLockedError: Another process held the store's lock for too long.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, CheckpointStore(folder) as store:
        ...     print(store.latest())
        None
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.read_only = read_only
        try:
            self.path = find_store(path)
        except StoreNotFoundError:
            if read_only:
                raise
            self.path = absolute(path)
        self._layout = Layout(self.path)
        self._open()

    def _open(self) -> None:
        self._heartbeats = {}
        self._manifest = (open_for_reading if self.read_only else open_for_writing)(self._layout)
        if self.read_only:
            return
        from ckptstore.commit.committer import Committer
        from ckptstore.commit.run_ownership import RunOwnership  # not needed for queries

        self._committer = Committer(self._layout, self._manifest)
        from ckptstore.store.attempts.recorder import AttemptRecorder

        self._ownership = RunOwnership(self._layout, self._manifest)
        self.recorder = AttemptRecorder(self._layout, self._manifest)
        opened_stores.note(self.path)

    def close(self) -> None:
        """Release runs, lease and connections. Nothing is pending: every save was durable when it returned."""
        try:
            if not self.read_only:
                self.recorder.close()
                for heartbeat in self._heartbeats.values():
                    heartbeat.end()
                self._committer.close()
        finally:
            if not self.read_only:
                self._ownership.release()
            self._manifest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self.read_only:
            self.recorder.close(error)
            if isinstance(error, Exception):
                self._ownership.forget_starts()
        self.close()

    def __repr__(self) -> str:
        return f"CheckpointStore({str(self.path)!r}{', read_only=True' if self.read_only else ''})"

    # --- restoring -----------------------------------------------------------------------------------

    def restore(
        self,
        ref: Ref,
        model: Model,
        *,
        optimizer: Optimizer | None = None,
        objects: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Bring a checkpoint's weights, optimizer and training state back into a model; returns the checkpoint.

        The payload is verified and compared with the model before the model changes. An interrupt after that leaves
        the model as it was saved, or, where a layer has its own loading code, as it was.

        Args:
            ref: A version, ``"latest"``, ``"best:METRIC"``, ``"resume-point"``, a tag, or a `Checkpoint`.
            model: The model, built and compiled as it was when it was saved.
            optimizer: The optimizer of a custom training loop, if one was passed to `save`.
            objects: The objects that were passed to `save`, under the same names: all are restored, or none. A tree of
                arrays that cannot be changed in place (an optax state) is replaced in this dict: use it from there.
                None to restore the model alone.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
            CorruptPayloadError: The payload is damaged; the model is unchanged. With ``"resume-point"`` the damaged one
                is quarantined and the one before restored, as `resume` does; `NoUsableCheckpointError` if all are.
            ModelMismatchError: The checkpoint does not fit the model, which is unchanged.
            ObjectsMismatchError: It has other objects, or of another structure, or one refuses it
                (`RefusedByObjectError`); model and objects are unchanged.
            RefusedByLayerError: A layer could not load it; `put_back` tells whether the model is as it was.
        """
        check_objects(objects)
        load = partial(adapter_for(model).restore, model, optimizer=optimizer, objects=objects)
        if ref == RESUME_POINT:
            # Evaluations that restore again and again are no run that keeps crashing: no start is counted.
            return self.load_newest_resume_point(load, count_starts=False) or self.get(ref)
        checkpoint = self.get(ref)
        load(checkpoint)
        return checkpoint

    def resume(
        self,
        model: Model,
        run: str | None = None,
        *,
        optimizer: Optimizer | None = None,
        objects: Mapping[str, Any] | None = None,
    ) -> Checkpoint | None:
        """Restore the newest resume point that loads, and return it; None where a run has none.

        The random generators of Python, numpy, torch and Keras are restored too, as they were at the save.

        Each resume point is verified before the model changes. A damaged one is quarantined, recorded and reported in
        one warning, and the next older one is tried. One that was started from three times without a save since is
        skipped, in case it is what ends the process. A store that is open for reading records nothing.

        Args:
            model: The model, built and compiled as it was when it was saved.
            run: The run, which this store then owns; None for the newest of all runs.
            optimizer: The optimizer of a custom training loop, if one was passed to `save`.
            objects: The objects that were passed to `save`, under the same names; as for `restore`. A checkpoint that
                has objects is not resumed without them.

        Raises:
            NoResumePointError: (a LookupError) The run has checkpoints, and all were saved without training state.
            NoUsableCheckpointError: There are resume points, and all are damaged or missing.
            ModelMismatchError: The newest undamaged one does not fit the model, which is unchanged.
            ObjectsMismatchError: It does not fit the objects; model and objects are unchanged.
            RefusedByLayerError: A layer could load none; `put_back` tells whether the model is as it was.
            RunLockedError: Another writer owns the run.
            StorageError: One cannot be read, which does not mean that it is damaged.
        """
        check_objects(objects)
        load = partial(
            adapter_for(model).restore, model, optimizer=optimizer, objects=objects, generators=True
        )
        resumed = self.load_newest_resume_point(load, run)
        if run is not None and not self.read_only:
            self._beat_of_loop(run)
        without_state = self.checkpoint_without_state(run) if resumed is None else None
        if without_state is not None:
            raise NoResumePointError(run=run, store=self.path, latest=without_state.version)
        return resumed

    def load_newest_resume_point(
        self, load: Callable[[Checkpoint], object], run: str | None = None, *, count_starts: bool = True
    ) -> Checkpoint | None:
        """Find the newest resume point that `load` accepts: the one way in which `restore`, `resume` and a fit do it.

        Args:
            load: Verifies a checkpoint's payload and brings it into a model; raises what `restore` raises.
            run: The run, which this store then owns; None for the newest of all runs.
            count_starts: True to count this start, and to skip what was started from too often without a save since.

        Raises:
            CheckpointStoreError: As `resume` says.
        """
        from ckptstore.store.resume import MAX_STARTS, ResumePointLoader

        if run is not None and not self.read_only:
            self.claim(run)
            if count_starts:
                self.recorder.begin(run)
        loader = ResumePointLoader(
            self._layout,
            self._manifest,
            run=run,
            locked=None if self.read_only else partial(store_lock, self._layout.locks),
            max_starts=MAX_STARTS if count_starts else None,
            facts=None if self.read_only else self.recorder.facts_of_resume,
        )
        try:
            resumed = loader.load(load)
        except (ModelMismatchError, RunMismatchError) as error:
            if run is not None and count_starts and not self.read_only:
                self._ownership.record_refusal(run, error)
            raise
        if resumed is not None and count_starts and not self.read_only:
            self._ownership.record_start(resumed.run)
        return resumed

    # --- checking and repairing ----------------------------------------------------------------------

    def verify(self, *, deep: bool = True, progress: Progress | None = None) -> list[Problem]:
        """Compare manifest and files, in both directions, and change nothing; returns the problems.

        Args:
            deep: Read and digest every payload; False compares names and sizes.
            progress: Called with numbers of bytes as they are done; their sum is that of all `nbytes`.
        """
        from ckptstore.store.verify import verify as verify_store

        return verify_store(self._layout, self._manifest, deep=deep, progress=progress)

    def repair(self, *, progress: Progress | None = None) -> list[Problem]:
        """Verify everything and repair what can be, deleting nothing; returns the problems, each with its `action`.

        Payloads without a row are adopted, damaged ones quarantined and marked, missing ones marked; a payload in
        quarantine that a row lost is put back. A manifest that SQLite finds damaged is rebuilt. A checkpoint that stays
        lost is no longer a problem. A crash leaves some of it undone; run it again.

        Args:
            progress: As for `verify`.

        Raises:
            RunLockedError: The manifest must be rebuilt, and a run is being written. This store releases its own runs
                for that, and no other thread may use it meanwhile.
            StorageError: Something cannot be read or moved.
        """
        from ckptstore.store.repair import repair

        self._check_writable("repair")
        locked = partial(store_lock, self._layout.locks)
        problems = repair(self._layout, self._manifest, locked, progress=progress)
        if not any(problem.kind == "manifest" for problem in problems):
            return problems
        self.close()
        try:
            return self.rebuild(self.path, progress=progress)
        finally:
            self._open()

    @staticmethod
    def rebuild(path: str | os.PathLike[str], *, progress: Progress | None = None) -> list[Problem]:
        """Make the manifest of a store again from its payloads, when it was lost or cannot be read.

        Version, run, position, metrics, tags and training state of every checkpoint come back; pins, later tags and
        costs as far as the damaged manifest, which is kept in quarantine, can still be read. Nobody else may have the
        store open. A crash leaves the old manifest in its place, or the new one; run it again.

        Args:
            path: The store's directory, or the folder of a drop-in callback.
            progress: Called with the number of bytes of payloads that were read since the last call.

        Returns:
            The payloads that could not be adopted, with what was done about each; first of all the manifest itself.

        Raises:
            StoreNotFoundError: There is neither a manifest nor a payload.
            RunLockedError: A writer owns a run of this store.
            StorageError: Something cannot be read or moved.
        """
        from ckptstore.store import rebuild

        return rebuild.rebuild_at(path, progress=progress)

    # --- transfer ------------------------------------------------------------------------------------

    def export(self, ref: Ref, path: str | os.PathLike[str], *, progress: Progress | None = None) -> Exported:
        """Write one checkpoint to a new file or folder; durable when it returns.

        ``.keras`` and ``.h5`` are the payload itself; ``.weights.h5`` the payload, or the weights in a ``.keras``;
        ``.safetensors`` the weights alone, without optimizer, under their paths in the payload; a name without
        extension, or with ``/`` at its end, a folder with the payload, `checkpoint.json` and a model card. The
        payload's digest is checked as it is read. A crash leaves nothing under that name, or the complete file; and
        perhaps a hidden folder beside it, ending in ``.ckptstore``, which the next export to that place removes.

        Args:
            ref: A version, ``"latest"``, ``"best:METRIC"``, ``"resume-point"``, a tag, or a `Checkpoint`.
            path: The file or folder; its parents are made.
            progress: Called with numbers of bytes as the payload is read; their sum is its size.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
            InvalidArgumentError: The path exists, it lies in the store, or the checkpoint cannot become that.
            CorruptPayloadError: The payload is damaged; nothing was made.
            MissingPackageError: (an ImportError) safetensors is not installed.
            DiskFullError: The disk is full; nothing was made.
        """
        from ckptstore.transfer.export import export

        return export(self.path, self.get(ref), path, progress)

    def copy(
        self,
        ref: Ref,
        target: CheckpointStore,
        *,
        run: str | None = None,
        progress: Progress | None = None,
    ) -> Copied:
        """Copy a checkpoint to another store, where it gets the next version; durable when it returns.

        Digests are checked, and metrics, position, time, cost, extra, pin and training state stay what they were; tags
        too, except those that another checkpoint has there. The metrics of the epochs since the run's checkpoint before
        it come along, so that a run of which everything is copied has the same history there. A crash leaves the copy
        complete, or none; copying again finds it.

        Args:
            ref: A version, ``"latest"``, ``"best:METRIC"``, ``"resume-point"``, a tag, or a `Checkpoint`.
            target: The other store, open for writing; it owns the run until its `close`.
            run: The run that the copy belongs to; None for the same.
            progress: Called with numbers of bytes as they are read, up to twice the payload's size.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
            CorruptPayloadError: The payload is damaged; nothing was copied.
            InvalidArgumentError: It is the same store.
            RunLockedError: Another writer owns the run there.
            DiskFullError: The disk is full; nothing was copied.
        """
        from ckptstore.store.history import epochs_since_checkpoint_before
        from ckptstore.transfer.copy import CopySource, copy

        target._check_writable("copy")
        checkpoint = self.get(ref)
        source = CopySource(
            uuid=self.uuid,
            monitors=self.monitors(checkpoint.run),
            earlier_epochs=epochs_since_checkpoint_before(self._manifest, checkpoint),
        )
        return copy(checkpoint, source, target, run=run, progress=progress)

    def import_files(
        self,
        *paths: str | os.PathLike[str],
        run: str | None = None,
        pattern: str | None = None,
        epoch: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> list[Imported]:
        """Import files that Keras saved, or that were exported, in the order of their epochs; the files stay.

        All files are checked before the first is saved. A folder of Keras' BackupAndRestore becomes a resume point: a
        fit with the same run resumes from it, though not bit for bit, since Keras saved only weights, optimizer and
        position: metrics, History, random generators, other callbacks and the order of the data start over, as
        `Imported.said` and a warning of the fit report. What a file written by ckptstore says of itself is kept. A
        crash leaves some of them imported, each completely; importing again finds these.

        Args:
            *paths: ``.keras``, ``.weights.h5`` and ``.h5`` files, and folders of BackupAndRestore.
            run: The run that they belong to; None for the run named in a file, or else ``"default"``.
            pattern: How the names were made, such as ``"{epoch:02d}-{val_loss:.2f}.keras"``: epoch, batch and metrics
                are read from them. Without it the epoch is 0.
            epoch: Zero-based index of the epoch, of a single file.
            metrics: Scalars by name, of a single file.
            progress: Called with numbers of bytes as they are read, up to three times the files' size.

        Returns:
            The import of each file.

        Raises:
            CorruptPayloadError: A file is damaged; nothing was imported.
            InvalidArgumentError: A path cannot be imported, or a name does not fit the pattern; nothing was imported.
            RunLockedError: Another writer owns the run.
        """
        from ckptstore.transfer.import_files import check_files, import_file

        self._check_writable("import")
        candidates = check_files(
            paths, run=run, pattern=pattern, epoch=epoch, metrics=metrics, progress=progress
        )
        return [import_file(self, candidate, progress) for candidate in candidates]

    # --- the end of a store --------------------------------------------------------------------------

    @staticmethod
    def discard(path: str | os.PathLike[str], *, run: str | None = None) -> bool:
        """Remove a store with all its checkpoints, and its directory if nothing else lies there.

        Payloads in quarantine stay, and then so does the store. A crash leaves all checkpoints or none.

        Args:
            path: The store.
            run: The only run to remove; if there are others, they stay, and so does the store.

        Returns:
            True if the directory was removed.

        Raises:
            StoreNotFoundError: There is no store.
            RunLockedError: Another writer owns a run of it; nothing was changed.
        """
        from ckptstore.store.discard import remove_checkpoints, remove_empty_store

        with CheckpointStore(find_store(path)) as store:
            runs = store.run_names()
            discarded = runs if run is None else [run]
            for name in discarded:
                store.claim(name)
            layout = Layout(store.path)
            remove_checkpoints(layout, store._manifest, discarded)
            if set(runs) - set(discarded):
                return False
            opened_stores.forget(store.path)
            return remove_empty_store(layout)
