"""`JobStop`: a signal to one process stops all processes of a fit at the same step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from signal import Signals

from ckptstore.distributed.stopping import AgreedStop
from ckptstore.system.stop_signals import StopRequest


class JobStop(StopRequest):
    """A request to stop that counts once all processes have agreed on where.

    Args:
        agreed: The agreement.
        signals: As for `StopRequest`.
        check: Called at each position; raises what else ends the fit there.
        takes_over: As for `StopRequest`.
    """

    def __init__(
        self,
        agreed: AgreedStop,
        signals: Sequence[Signals],
        *,
        check: Callable[[], object] = lambda: None,
        takes_over: Sequence[Signals] = (),
    ) -> None:
        super().__init__(signals, takes_over=takes_over)
        self._agreed = agreed
        self._check = check
        self._is_reached = self._is_over = False

    @property
    def received(self) -> Signals | None:
        """The signal, to whichever process it came, at the position where all stop; None before it.

        After `uninstall` it is what came to this process, and was too late for the others.
        """
        own = super().received
        if self._delivered or self._is_over:
            return own
        return Signals[self._agreed.reason] if self._is_reached else None

    def reached(self, step: int, *, epoch_ended: bool) -> None:
        """Tell that training has come to a position: `received` says if all stop there.

        Raises:
            DistributedError: A stop was asked for, and the processes cannot agree on where; or what `check` raises.
        """
        self._check()
        own = super().received
        if own is not None:
            self._agreed.ask(own.name)
        if self._agreed.reached((step, int(epoch_ended))):
            self._is_reached = True

    def install(self) -> None:
        """Begin to watch for signals, and for the requests of other processes."""
        super().install()
        self._agreed.start()

    def uninstall(self) -> None:
        """End that; may be called again."""
        super().uninstall()
        self._is_over = self._is_over or not self._is_reached
        self._agreed.close()
