"""The metrics of a run's epochs, which stay when its checkpoints go.

Of an epoch's checkpoints that of its end counts, and while there is none the newest; after a restart that trains an
epoch again, the newer one; of a run that was begun anew, the newest attempt's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sqlalchemy import Connection, bindparam, delete, insert, select

from ckptstore.manifest_floor import first_version
from ckptstore.models import EPOCH_METRICS, EPOCHS
from ckptstore.records import NewCheckpoint

# Built once: building a statement takes longer than executing it.
_HERE = (EPOCHS.run_id == bindparam("run_id"), EPOCHS.epoch == bindparam("epoch"))
_NOTED = select(EPOCHS.version, EPOCHS.batch, first_version(EPOCHS.run_id).label("attempt")).where(*_HERE)
_FORGET_METRICS = delete(EPOCH_METRICS.table).where(
    EPOCH_METRICS.run_id == bindparam("run_id"), EPOCH_METRICS.epoch == bindparam("epoch")
)
_FORGET = delete(EPOCHS.table).where(*_HERE)
_NOTE, _NOTE_METRICS = insert(EPOCHS.table), insert(EPOCH_METRICS.table)


def note_epoch(connection: Connection, run_id: int, new: NewCheckpoint, values: Mapping[int, float]) -> None:
    """Let a new checkpoint tell of its epoch, unless an older one tells better.

    Args:
        connection: In the transaction that inserts the checkpoint.
        run_id: Its run.
        new: The checkpoint.
        values: Its metrics, by their ids.
    """
    here = {"run_id": run_id, "epoch": new.epoch}
    noted = connection.execute(_NOTED, here).one_or_none()
    if noted is not None:
        if not _tells_better(new, noted.version, noted.batch, noted.attempt):
            return
        connection.execute(_FORGET_METRICS, here)
        connection.execute(_FORGET, here)
    told = {"version": new.version, "batch": new.batch, "step": new.step, "created_at": new.created_at}
    connection.execute(_NOTE, {**here, **told})
    rows = [
        {**here, "metric_id": metric, "value": None if math.isnan(value) else float(value)}
        for metric, value in values.items()
    ]
    if rows:
        connection.execute(_NOTE_METRICS, rows)


def _tells_better(new: NewCheckpoint, version: int, batch: int | None, attempt: int) -> bool:
    """Tell whether a checkpoint tells more of its epoch than the one that is noted."""
    if (new.version >= attempt) != (version >= attempt):
        return new.version >= attempt
    if (new.batch is None) != (batch is None):
        return new.batch is None
    return new.version > version
