"""`CheckpointStore`: the façade over payloads, manifest and locks. Knows neither Keras nor terminals."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ckptstore.commit.open import open_for_reading, open_for_writing
from ckptstore.errors import StoreNotFoundError
from ckptstore.records import Checkpoint, Mode, Problem
from ckptstore.storage.layout import Layout, absolute, find_store
from ckptstore.storage.locks import store_lock
from ckptstore.store.model_adapter import adapter_for
from ckptstore.store.moving import StoreMoving
from ckptstore.store.reader import Ref
from ckptstore.store.refs import RESUME_POINT
from ckptstore.validation import check_tag

if TYPE_CHECKING:
    from keras import Model, Optimizer

    from ckptstore.retention.policy import Kept, Policy
    from ckptstore.store.prune import Pruned
    from ckptstore.store.verify import Progress

_RESUME_ATTEMPTS = 3  # starts without a save since, before `resume` steps over a checkpoint


class CheckpointStore(StoreMoving):
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
        try:
            self.path = find_store(path)
        except StoreNotFoundError:
            if read_only:
                raise
            self.path = absolute(path)
        self._layout = Layout(self.path)
        self._open()

    def _open(self) -> None:
        self._manifest = (open_for_reading if self.read_only else open_for_writing)(self._layout)
        if self.read_only:
            return
        from ckptstore.commit.committer import Committer
        from ckptstore.commit.run_ownership import Claims  # a query can do without

        self._committer = Committer(self._layout, self._manifest)
        self._claims = Claims(self._layout, self._manifest)

    def close(self) -> None:
        """Release runs, lease and connections. Nothing is pending: every save was durable when it returned."""
        try:
            if not self.read_only:
                self._committer.close()
        finally:
            if not self.read_only:
                self._claims.release()
            self._manifest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not self.read_only:
            self._claims.forget_starts()
        self.close()

    def __repr__(self) -> str:
        return f"CheckpointStore({str(self.path)!r}{', read_only=True' if self.read_only else ''})"

    def restore(self, ref: Ref, model: Model, *, optimizer: Optimizer | None = None) -> Checkpoint:
        """Bring a checkpoint's weights, optimizer and training state back into a model; returns the checkpoint.

        The payload is verified and compared with the model before anything is touched. An interrupt behind that leaves
        the model as it was saved, or, where a layer has loading of its own, as it was.

        Args:
            ref: A version, ``"latest"``, ``"best:METRIC"``, ``"resume-point"``, a tag, or a `Checkpoint`.
            model: The model, built and compiled as it was when it was saved.
            optimizer: The optimizer of a loop written by hand, if one was passed to `save`.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
            CorruptPayloadError: The payload is damaged; the model is unchanged. With ``"resume-point"`` that is put
                into quarantine and the one before restored, as `resume` does; `NoUsableCheckpointError` if all are.
            ModelMismatchError: It does not fit the model, which is unchanged.
            RefusedByLayerError: A layer could not load it; `put_back` tells whether the model is as it was.
        """
        if ref == RESUME_POINT:
            # An evaluation that does so again and again is no run that keeps crashing: no start is counted.
            return self._walk(self._load(model, optimizer), None, None) or self.get(ref)
        checkpoint = self.get(ref)
        adapter_for(model).restore(model, checkpoint, optimizer=optimizer)
        return checkpoint

    def resume(
        self, model: Model, run: str | None = None, *, optimizer: Optimizer | None = None
    ) -> Checkpoint | None:
        """Restore the newest resume point that loads, and return it; None where a run has none.

        With it come back the random generators of Python, numpy, torch and Keras, as they were at the save.

        Each is verified before the model is touched. One that is damaged is put into quarantine, noted and said in
        one warning, and the next older one is tried. One that was started from three times without a save since is
        stepped over, in case it is what ends the process. A store that is open for reading notes nothing.

        Args:
            model: The model, built and compiled as it was when it was saved.
            run: The run, which this store then writes; None for the newest of all runs.
            optimizer: The optimizer of a loop written by hand, if one was passed to `save`.

        Raises:
            NoUsableCheckpointError: There are resume points, and all are damaged or missing.
            ModelMismatchError: The newest that is whole does not fit the model, which is unchanged.
            RefusedByLayerError: A layer could load none; `put_back` tells whether the model is as it was.
            RunLockedError: Another writer has the run.
            StorageError: One cannot be read, which does not say that it is damaged.
        """
        return self.resume_with(self._load(model, optimizer, generators=True), run)

    def resume_with(self, load: Callable[[Checkpoint], object], run: str | None = None) -> Checkpoint | None:
        """Do as `resume` does, with `load` in the place of `restore`; what it raises says what to do next, as there."""
        if run is not None and not self.read_only:
            self.claim(run)
        return self._walk(load, run, _RESUME_ATTEMPTS)

    def _load(
        self, model: Model, optimizer: Optimizer | None, **kwargs: Any
    ) -> Callable[[Checkpoint], object]:
        return partial(adapter_for(model).restore, model, optimizer=optimizer, **kwargs)

    def _walk(
        self, load: Callable[[Checkpoint], object], run: str | None, attempts: int | None
    ) -> Checkpoint | None:
        from ckptstore.store.resume import Resumption

        locked = None if self.read_only else partial(store_lock, self._layout.locks)
        walk = Resumption(self._layout, self._manifest, run=run, locked=locked, attempts=attempts)
        resumed = walk.load(load)
        if resumed is not None and locked is not None and attempts is not None:
            self._claims.note_start(resumed.run)
        return resumed

    def claim(self, run: str) -> None:
        """Become the writer of a run, until `close`; saving does this by itself.

        Raises:
            RunLockedError: Another writer has it; says who.
        """
        self._check_writable("claim")
        self._claims.claim(run)

    def begin(self, run: str) -> int:
        """Begin a run anew, beside what it has, and become its writer; returns the attempt's number, from 1.

        Its earlier checkpoints stay and can be asked for, but `resume` and `resume_point` never go back to them: until
        the new attempt has saved something, there is nothing to resume from. A crash meanwhile leaves the attempt
        begun, or the run as it was.

        Raises:
            RunLockedError: Another writer has the run.
        """
        self.claim(run)
        return self._claims.begin(run)

    def verify(self, *, deep: bool = True, progress: Progress | None = None) -> list[Problem]:
        """Compare manifest and files, both ways, and change nothing; returns the problems.

        Args:
            deep: Read and digest every payload; False compares names and sizes.
            progress: Called with numbers of bytes as they are done; their sum is that of all `nbytes`.
        """
        from ckptstore.store.verify import verify as verify_store

        return verify_store(self._layout, self._manifest, deep=deep, progress=progress)

    def repair(self, *, progress: Progress | None = None) -> list[Problem]:
        """Verify everything and mend what can be, deleting nothing; returns the problems, each with its `action`.

        Payloads without a row are taken in, damaged ones put into quarantine and marked, missing ones marked; one that
        lies in quarantine and is what a row lost is put back. A manifest that SQLite finds damaged is made again. What
        stays lost is no problem any more. A crash leaves some of it undone; run it again.

        Args:
            progress: As for `verify`.

        Raises:
            RunLockedError: The manifest must be made again, and a run is being written. Those of this store are let go
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
        costs as far as the damaged manifest can still be read, which is kept in quarantine. Nobody else may have the
        store open. A crash leaves the old manifest in its place, or the new one; run it again.

        Args:
            path: The store's directory, or the folder of a drop-in callback.
            progress: Called with the number of bytes of payloads that were read since the last call.

        Returns:
            What could not be taken in, with what was done about it; first of all the manifest itself.

        Raises:
            StoreNotFoundError: There is neither a manifest nor a payload.
            RunLockedError: A writer has a run of this store.
            StorageError: Something cannot be read or moved.
        """
        from ckptstore.store import rebuild

        return rebuild.rebuild_at(path, progress=progress)

    def prune(self, policy: Policy | Kept, *, run: str | None = None, dry_run: bool = False) -> Pruned:
        """Remove what a policy does not keep, of one run or of each; returns what went, what stays and why.

        Only checkpoints that are whole count. What always stays, whatever the policy says: the best of every metric
        that a callback watched, the newest two, the newest two that can be resumed from, the one that the run was
        resumed from last, the pinned, and what a path shows.

        A crash leaves all checkpoints, or those that stay and rows that are marked; the next opening for writing
        removes the rest of these.

        Args:
            policy: Such as ``keep_last(3) | keep_best("val_loss", 2)``; or a function of a run's checkpoints, oldest
                first, that returns those, or the versions, that stay.
            run: The run; None for each run by itself.
            dry_run: Change nothing; also possible in a store that is open for reading.

        Raises:
            InvalidArgumentError: The policy keeps nothing of a run, contradicts the direction in which the run watches
                a metric, or is a budget that the best and the resume point do not fit; nothing was removed.
            MetricNotFoundError: It looks at a metric that a run does not have; nothing was removed.
            RunNotFoundError: There is no such run.

        Example:
            >>> import tempfile
            >>> from ckptstore import keep_best, keep_last
            >>> with tempfile.TemporaryDirectory() as folder, CheckpointStore(folder) as store:
            ...     store.prune(keep_last(3) | keep_best("val_loss", 2), dry_run=True).removed
            []
        """
        from ckptstore.store.prune import prune

        if not dry_run:
            self._check_writable("prune")
        return prune(self._layout, self._manifest, policy, run=run, dry_run=dry_run)

    def watch(self, run: str, monitors: Mapping[str, Mode]) -> None:
        """Note which way a run takes metrics to be better; what it watches already stays as it is."""
        self._check_writable("watch")
        known = self._manifest.monitors(run)
        wanted = {metric: mode for metric, mode in monitors.items() if metric not in known}
        if wanted:
            with store_lock(self._layout.locks):
                self._manifest.watch(run, wanted)

    def tag(self, ref: Ref, name: str) -> None:
        """Give a checkpoint a name, by which `get` finds it; a name that another one has moves, atomically.

        Which checkpoint had a name when stands in `events`, kinds ``"tagged"`` and ``"untagged"``. A crash leaves the
        name where it was, or where it is to be.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
            InvalidArgumentError: It reads as another ref, or is not printable text.
        """
        self._check_writable("tag")
        check_tag(name)
        version = self.get(ref).version
        with store_lock(self._layout.locks):
            self._manifest.tag(version, name)

    def untag(self, name: str) -> int:
        """Take a name away; returns the version of the checkpoint that had it, which stays.

        Raises:
            CheckpointNotFoundError: No checkpoint has it.
        """
        self._check_writable("untag")
        with store_lock(self._layout.locks):
            return self._manifest.untag(name)

    def pin(self, ref: Ref, pinned: bool = True) -> None:
        """Keep a checkpoint whatever a retention policy says; ``pinned=False`` lets it go again.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
        """
        self._check_writable("pin")
        version = self.get(ref).version
        with store_lock(self._layout.locks):
            self._manifest.pin(version, pinned)

    @staticmethod
    def discard(path: str | os.PathLike[str], *, run: str | None = None) -> bool:
        """Remove a store with all its checkpoints, and its directory if nothing else lies there.

        Payloads in quarantine stay, and then so does the store. A crash leaves all checkpoints or none.

        Args:
            path: The store.
            run: The only run to remove; where there are others, they stay, and so does the store.

        Returns:
            Whether the directory is gone.

        Raises:
            StoreNotFoundError: There is no store.
            RunLockedError: Another writer has a run of it; nothing was changed.
        """
        from ckptstore.store.discard import remove_checkpoints, remove_empty_store

        with CheckpointStore(find_store(path)) as store:
            runs = store.runs()
            doomed = runs if run is None else [run]
            for one in doomed:
                store.claim(one)
            remove_checkpoints(store._layout, store._manifest, doomed)
            if set(runs) - set(doomed):
                return False
            return remove_empty_store(store._layout)
