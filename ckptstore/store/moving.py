"""What a store does to bring checkpoints out, over to another store, and in."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckptstore.records import Mode
from ckptstore.store.reader import Ref
from ckptstore.store.writer import StoreSaving

if TYPE_CHECKING:
    from ckptstore.store.verify import Progress
    from ckptstore.transfer.copy import Copied
    from ckptstore.transfer.export import Exported
    from ckptstore.transfer.import_files import Imported


class StoreMoving(StoreSaving):
    """The part of a store that moves checkpoints across its border."""

    @property
    def uuid(self) -> str:
        """The store's own id, made with it."""
        return self._manifest.uuid

    def monitors(self, run: str) -> dict[str, Mode]:
        """Return the metrics that a run's callbacks watched, each with its better direction."""
        return self._manifest.monitors(run)

    @abstractmethod
    def watch(self, run: str, monitors: Mapping[str, Mode]) -> None:
        """Note which way a run takes metrics to be better; what it watches already stays as it is."""

    @abstractmethod
    def pin(self, ref: Ref, pinned: bool = True) -> None:
        """Keep a checkpoint whatever a retention policy says."""

    def export(self, ref: Ref, path: str | os.PathLike[str], *, progress: Progress | None = None) -> Exported:
        """Write one checkpoint to a new file or folder; durable when it returns.

        ``.keras`` and ``.h5`` are the payload itself; ``.weights.h5`` the payload, or what lies in a ``.keras``;
        ``.safetensors`` the weights alone, without optimizer, under their paths in the payload; a name without
        extension, or with ``/`` at its end, a folder with the payload, `checkpoint.json` and a model card. The
        payload's digest is checked as it is read. A crash leaves nothing under that name, or the whole; and perhaps a
        hidden folder beside it, ending in ``.ckptstore``, which the next export to that place removes.

        Args:
            ref: A version, ``"latest"``, ``"best:METRIC"``, ``"resume-point"``, a tag, or a `Checkpoint`.
            path: The file or folder; its parents are made.
            progress: Called with numbers of bytes as the payload is read; their sum is its size.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
            InvalidArgumentError: Something is there already, it lies in the store, or the checkpoint cannot become
                that.
            CorruptPayloadError: The payload is damaged; nothing was made.
            MissingPackageError: (an ImportError) safetensors is not installed.
            DiskFullError: There is no room; nothing was made.
        """
        from ckptstore.transfer.export import export

        return export(self.path, self.get(ref), path, progress)

    def copy(
        self, ref: Ref, target: StoreMoving, *, run: str | None = None, progress: Progress | None = None
    ) -> Copied:
        """Copy a checkpoint to another store, where it gets the next version; durable when it returns.

        Digests are checked, and metrics, position, time, cost, extra, pin and training state stay what they were;
        tags too, but for those that another checkpoint has there. A crash leaves the copy wholly there, or not at all;
        copied again, it is found.

        Args:
            ref: A version, ``"latest"``, ``"best:METRIC"``, ``"resume-point"``, a tag, or a `Checkpoint`.
            target: The other store, open for writing; it writes the run until its `close`.
            run: The run that it belongs to there; None for the same.
            progress: Called with numbers of bytes as they are read, up to twice the payload's size.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to `ref`.
            CorruptPayloadError: The payload is damaged; nothing was copied.
            InvalidArgumentError: It is the same store.
            RunLockedError: Another writer has the run there.
            DiskFullError: There is no room; nothing was copied.
        """
        from ckptstore.transfer.copy import copy

        target._check_writable("copy")
        return copy(self, self.get(ref), target, run=run, progress=progress)

    def import_files(
        self,
        *paths: str | os.PathLike[str],
        run: str | None = None,
        pattern: str | None = None,
        epoch: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> list[Imported]:
        """Take in files that Keras saved, or that were exported, in the order of their epochs; the files stay.

        All are looked through before the first is saved. A folder of Keras' BackupAndRestore becomes a resume point: a
        fit with the same run goes on from it, though not to the bit, since Keras saved no more than weights, optimizer
        and position: metrics, History, random generators, other callbacks and the order of the data begin anew, as
        `Imported.said` tells, and a warning of the fit. What a file of ours says of itself is kept. A crash leaves some
        of them saved, each wholly; imported again, these are found.

        Args:
            *paths: ``.keras``, ``.weights.h5`` and ``.h5`` files, and folders of BackupAndRestore.
            run: The run that they belong to; None for what a file says, or else ``"default"``.
            pattern: How the names were made, such as ``"{epoch:02d}-{val_loss:.2f}.keras"``: epoch, batch and metrics
                are read from them. Without, the epoch is 0.
            epoch: Zero-based index of the epoch, of a single file.
            metrics: Scalars by name, of a single file.
            progress: Called with numbers of bytes as they are read, up to three times the files' size.

        Returns:
            What each became.

        Raises:
            CorruptPayloadError: A file is damaged; nothing was imported.
            InvalidArgumentError: A path is nothing that can be imported, or a name does not fit the pattern; nothing
                was imported.
            RunLockedError: Another writer has the run.
        """
        from ckptstore.transfer.import_files import look_through, take

        self._check_writable("import")
        found = look_through(paths, run=run, pattern=pattern, epoch=epoch, metrics=metrics, progress=progress)
        return [take(self, candidate, progress) for candidate in found]
