"""The outcome of a supervision: how the command ended, and the progress that it made meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptstore.records import Checkpoint
from ckptstore.supervisor.store_access import StoreState


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedOutcome:
    """How a supervised command ended.

    Attributes:
        exit_code: Its last exit code; 128 + N where signal N killed it; 126 or 127 where it could not be started.
        restarts: Starts after the first.
        checkpoints: How many checkpoints were saved meanwhile.
        resume_point: Where the next start would resume, or None.
        stopped: Why it is not started again; None if it has ended well.
        message: The same in words; empty if it has ended well.
        ends: How many starts ended for which reason.
        log: The log of the last start, or None.
    """

    exit_code: int
    restarts: int
    checkpoints: int
    resume_point: Checkpoint | None
    stopped: str | None = None
    message: str = ""
    ends: Mapping[str, int] = field(default_factory=dict, hash=False)
    log: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as the JSON object of the command line."""
        point = self.resume_point
        return {
            "exit_code": self.exit_code,
            "restarts": self.restarts,
            "checkpoints": self.checkpoints,
            "resume_point": None if point is None else point.to_json(),
            "stopped": self.stopped,
            "message": self.message,
            "ends": dict(self.ends),
            "log": None if self.log is None else str(self.log),
        }


class Progress:
    """Progress of the command, seen by the versions in its store."""

    def __init__(self, state: StoreState) -> None:
        self._newest = self.first = state.newest

    @property
    def has_new(self) -> bool:
        """True if there was a new checkpoint at any check."""
        return self.first is not None and self._newest is not None and self._newest > self.first

    def check(self, state: StoreState) -> bool:
        """Return True if there is a new checkpoint since the last check; False where that is not known."""
        before = self._newest
        if state.newest is None:
            return False
        self._newest = max(state.newest, before or 0)
        if self.first is None:
            self.first = self._newest
        return before is not None and self._newest > before
