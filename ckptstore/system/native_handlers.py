"""Signal handlers from outside Python, such as a backend's: kept aside, and put back as they were.

Python knows nothing of them, and would install the default action in their place. The kernel's record of a handler is
copied as bytes, and never looked into.
"""

from __future__ import annotations

import ctypes
from signal import Signals

# More than the record takes on any platform.
_RECORD_NBYTES = 512


class NativeHandler:
    """The handler of a signal as the kernel knows it now.

    Args:
        number: The signal.

    Raises:
        OSError: The platform does not tell.
    """

    def __init__(self, number: Signals) -> None:
        self._number = number
        self._record = ctypes.create_string_buffer(_RECORD_NBYTES)
        _sigaction(number, None, self._record)

    def put_back(self) -> None:
        """Install it again.

        Raises:
            OSError: The system refuses.
        """
        _sigaction(self._number, self._record, None)


def _sigaction(
    number: int, new: ctypes.Array[ctypes.c_char] | None, old: ctypes.Array[ctypes.c_char] | None
) -> None:
    try:
        function = ctypes.CDLL(None, use_errno=True).sigaction
    except (AttributeError, TypeError) as error:
        raise OSError("there is no sigaction here") from error
    if function(int(number), new, old) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"sigaction of signal {number}")
