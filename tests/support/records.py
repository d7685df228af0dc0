"""A checkpoint to build errors and reports of, which lies in no store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from ckptstore.records import Checkpoint

PATH = Path("/runs/digits")
CHECKPOINT = Checkpoint(
    version=7,
    run="a",
    epoch=1,
    batch=None,
    step=9,
    metrics={"loss": 0.5},
    path=PATH / "checkpoints" / "00000007-a.keras",
    nbytes=3,
    digest="xxh3_128:0",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)
