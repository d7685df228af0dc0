"""What a store does to bring checkpoints out, over to another store, and in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ckptstore.store_queries import Ref
from ckptstore.store_saving import StoreSaving

if TYPE_CHECKING:
    from ckptstore.exporting import Exported
    from ckptstore.verification import Progress


class StoreMoving(StoreSaving):
    """The part of a store that moves checkpoints across its border."""

    def export(self, ref: Ref, path: str | os.PathLike[str], *, progress: Progress | None = None) -> Exported:
        """Write one checkpoint to a new file or folder; durable when it returns.

        ``.keras`` and ``.h5`` are the payload itself; ``.weights.h5`` the payload, or what lies in a ``.keras``;
        ``.safetensors`` the weights alone, without optimizer, under their paths in the payload; a name without
        extension, or with ``/`` at its end, a folder with the payload, `checkpoint.json` and a model card. The
        payload's digest is checked as it is read. A crash leaves nothing under that name, or the whole; and perhaps a
        hidden file beside it, ending in ``.ckptstore``.

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
        from ckptstore.exporting import export

        return export(self.path, self.get(ref), path, progress)
