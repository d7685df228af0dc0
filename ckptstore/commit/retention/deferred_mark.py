"""`DeferredMark`: marks expired checkpoints inside a save's transaction and reports errors after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ckptstore.errors import CorruptManifestError, StorageError
from ckptstore.manifest.retention.checks import Decision, RetentionCheck
from ckptstore.manifest.retention.run_rows import RunRows
from ckptstore.manifest.sqlite_errors import FOREIGN_ERRORS
from ckptstore.records import Checkpoint


class DeferredMark:
    """A retention check that runs inside a save's transaction, which must not fail because of a policy.

    Args:
        decide: Decides what expires of a run.

    Attributes:
        check: The check for the transaction.
        tried: True once the check has run.
        expired: The checkpoints that were marked, if the transaction was committed.
        error: The policy's error, if it raised one; nothing was marked then.
    """

    check: RetentionCheck

    def __init__(self, decide: Callable[[RunRows], Decision | None]) -> None:
        self._decide = decide
        self.tried = False
        self.expired: Sequence[Checkpoint] = ()
        self.error: Exception | None = None

    def decide(self, view: RunRows) -> Decision | None:
        """Decide what expires of a run, or keep the error."""
        self.tried, self.error = True, None
        try:
            decision = self._decide(view)
        except (*FOREIGN_ERRORS, StorageError, CorruptManifestError, MemoryError):
            raise  # fails the whole transaction
        except Exception as error:
            # The checkpoint that is being added does not depend on the policy.
            self.error = error
            return None
        self.expired = () if decision is None else decision.expired
        return decision

    def result(self) -> Sequence[Checkpoint]:
        """Return the checkpoints that were marked, or raise the policy's error."""
        if self.error is not None:
            raise self.error
        return self.expired
