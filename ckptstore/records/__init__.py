"""The records that the rooms exchange: frozen, typed, without I/O.

`checkpoints` has checkpoints and what belongs to them, `runs` has runs and the attempts at them,
`heartbeats` where a training stands, `frameworks` the frameworks whose models can be saved.

May import: nothing.
"""

from __future__ import annotations

from ckptstore.records.checkpoints import (
    FINISHED,
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
from ckptstore.records.heartbeats import PHASES, SILENCES, Beat, Phase, Silence
from ckptstore.records.observations import DiskSpace, Observation, ObservedRun, SavingCost
from ckptstore.records.runs import (
    END_REASONS,
    Attempt,
    AttemptEnd,
    EndReason,
    NewAttempt,
    OpenAttempt,
    Run,
    RunOverview,
    RunState,
    newest_run,
)

__all__ = [
    "END_REASONS",
    "FINISHED",
    "PHASES",
    "SILENCES",
    "Attempt",
    "AttemptEnd",
    "Beat",
    "Checkpoint",
    "Claim",
    "DiskSpace",
    "EndReason",
    "Epoch",
    "Event",
    "FinishedEpoch",
    "Format",
    "Holder",
    "Mode",
    "NewAttempt",
    "NewCheckpoint",
    "Observation",
    "ObservedRun",
    "OpenAttempt",
    "Phase",
    "Problem",
    "Published",
    "Resumed",
    "RetentionProgress",
    "RowKey",
    "Run",
    "RunOverview",
    "RunState",
    "SavingCost",
    "Silence",
    "State",
    "json_number",
    "json_time",
    "newest_run",
]
