"""The records that the rooms exchange: frozen, typed, without I/O."""

from __future__ import annotations

from ckptstore.records.checkpoints import (
    FINISHED,
    SUFFIXES,
    Checkpoint,
    Claim,
    Epoch,
    Event,
    FinishedEpoch,
    Format,
    Holder,
    Mode,
    NewCheckpoint,
    Problem,
    Published,
    Resumed,
    RetentionProgress,
    RowKey,
    State,
    json_number,
    json_time,
)
from ckptstore.records.runs import END_REASONS, Attempt, EndReason, Run, RunState

__all__ = [
    "END_REASONS",
    "FINISHED",
    "SUFFIXES",
    "Attempt",
    "Checkpoint",
    "Claim",
    "EndReason",
    "Epoch",
    "Event",
    "FinishedEpoch",
    "Format",
    "Holder",
    "Mode",
    "NewCheckpoint",
    "Problem",
    "Published",
    "Resumed",
    "RetentionProgress",
    "RowKey",
    "Run",
    "RunState",
    "State",
    "json_number",
    "json_time",
]
