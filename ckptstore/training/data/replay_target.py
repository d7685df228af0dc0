"""Where a replay of the training data goes to, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ckptstore.keras.state.random_state import GlobalGenerators


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """The outcome of a replay.

    Attributes:
        batches: Number of batches read and discarded.
        seconds: Duration of the replay.
        inexact: Names of the global generators that both the data and the training draw from during an epoch. A
            replay does not train, so the data draws other values from them.
        is_other_data: True if the first batch that was read again is not the one that was trained on.
    """

    batches: int
    seconds: float
    inexact: tuple[str, ...] = ()
    is_other_data: bool = False


@dataclass(slots=True, kw_only=True)
class ReplayTarget:
    """The position to reach, and the state at the save.

    Attributes:
        position: The saved result of `DataReplay.position`.
        epoch: The epoch to resume in.
        batches: Number of batches of this epoch already trained on; 0 at its beginning.
        generators: The global generators at the save.
        logs: The logs of the last of these batches.
        on_finished: Called after the replay, before the first batch to train on.
    """

    position: dict[str, Any]
    epoch: int
    batches: int
    generators: GlobalGenerators | None
    logs: dict[str, Any] = field(default_factory=dict)
    on_finished: Callable[[ReplayResult], None]
