"""`PeerWatch`: says that another process has given up, also while this one waits for it in a step on the devices."""

from __future__ import annotations

from ckptstore.distributed.agreements import Agreements
from ckptstore.errors import PeerFailedError
from ckptstore.system import messages

# A look at every so many calls: a reason that comes a second later is soon enough.
_CALLS_FOR_A_LOOK = 4


class PeerWatch:
    """Called again and again; prints one line when a process has given up.

    No code of Python can end a step that waits for that process. JAX ends it: when the process has exited, which waits
    for the others, by its default for 300 s.

    Args:
        agreements: Those of the fit.
    """

    def __init__(self, agreements: Agreements) -> None:
        self._agreements = agreements
        self._calls = 0
        self._has_told = False

    def __call__(self) -> None:
        """Look, sometimes.

        Raises:
            DistributedError: The messages do not get through.
        """
        self._calls += 1
        if self._has_told or self._calls % _CALLS_FOR_A_LOOK:
            return
        try:
            self._agreements.check()
        except PeerFailedError as error:
            self._has_told = True
            messages.log(
                f"ckptstore: {error.message}; a step that waits for it ends with an error of the framework, on JAX "
                "after up to 5 minutes"
            )
