"""`PeerWatch`: notices that another process has given up, or has seen other batches, also during a step."""

from __future__ import annotations

from collections.abc import Callable

from ckptstore.distributed.agreements import Agreements
from ckptstore.distributed.batch_counts import BatchCounts
from ckptstore.errors import DistributedError, PeerFailedError, UnequalBatchesError
from ckptstore.system import messages

# A look at every so many calls: a reason that comes a second later is soon enough.
_CALLS_FOR_A_LOOK = 4


class PeerWatch:
    """Called again and again by a thread; prints one line when this fit cannot go on because of another process.

    No exception reaches a step that waits for that process: `leave` ends it. Outside of a step the training thread
    calls `check`.

    Args:
        agreements: Those of the fit.
        counts: The batches of the fit. Where they differ, this process gives up, so that no other one waits for it.
        leave: Called with the error from then on.

    Attributes:
        error: Why the fit cannot go on, or None.
    """

    def __init__(
        self,
        agreements: Agreements,
        counts: BatchCounts,
        *,
        leave: Callable[[DistributedError], object] = lambda error: None,
    ) -> None:
        self._agreements = agreements
        self._counts = counts
        self._leave = leave
        self._calls = 0
        self.error: DistributedError | None = None

    def __call__(self) -> None:
        """Look, sometimes.

        Raises:
            DistributedError: The messages do not get through.
        """
        if self.error is not None:
            self._leave(self.error)
            return
        self._calls += 1
        if self._calls % _CALLS_FOR_A_LOOK:
            return
        try:
            self._counts.look()
            self._agreements.check()
        except PeerFailedError as error:
            self._note(error, error.failed, error.message)
        except UnequalBatchesError as error:
            self._agreements.give_up(f"{type(error).__name__}: {error.message}")
            self._note(error, error.other, str(error))

    def _note(self, error: DistributedError, process: int, text: str) -> None:
        self.error = error
        messages.log(f"ckptstore: {text}; a step that waits for process {process} cannot end")

    def check(self) -> None:
        """Raise what was noticed; costs nothing where nothing was.

        Raises:
            PeerFailedError: Another process has given up.
            UnequalBatchesError: Another process has seen other batches.
        """
        if self.error is not None:
            raise self.error
