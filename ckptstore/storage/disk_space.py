"""Space left on a store's disk, and when it will be used up if it goes on like this."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from ckptstore.records import DiskSpace

# How far back a trend goes, how close its points are, and how long it must have been followed to mean something.
_WINDOW_S = 3600.0
_EVERY_S = 5.0
_LEAST_S = 60.0
# A trend that fills the disk later than this is not told.
_LATEST_S = 5 * 365 * 86_400.0


def disk_space(path: Path, *, full_in_s: float | None = None) -> DiskSpace | None:
    """Return the space on the disk that a path is on; None where the system does not tell.

    Args:
        path: Any path on the disk.
        full_in_s: When the disk will be full, if the caller knows.
    """
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return DiskSpace(
        total=found.f_frsize * found.f_blocks, free=found.f_frsize * found.f_bavail, full_in_s=full_in_s
    )


class DiskTrend:
    """The free space of a disk as it was seen during the last hour.

    Example:
        >>> trend = DiskTrend()
        >>> for second in range(0, 600, 10):
        ...     trend.add(second, 10**9 - second * 10**6)
        >>> trend.full_in_s()
        410.0
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at_s: float, free: int) -> None:
        """Add what was seen.

        Args:
            at_s: Seconds of a clock that only increases, such as `time.monotonic`.
            free: Free bytes.
        """
        # A point a few seconds after another one replaces it, so that the last one is always the newest.
        if len(self._seen) > 1 and at_s - self._seen[-2][0] < _EVERY_S:
            self._seen.pop()
        self._seen.append((at_s, free))
        while at_s - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()

    def full_in_s(self) -> float | None:
        """Return the seconds until nothing is free, by the straight line that fits best.

        None where the disk does not fill, or has been watched for less than a minute. Files that come and go, as
        checkpoints do of which the newest three are kept, do not count, once they have come and gone a few times.
        """
        if len(self._seen) < 3 or self._seen[-1][0] - self._seen[0][0] < _LEAST_S:
            return None
        times, frees = zip(*self._seen, strict=True)
        mean_time, mean_free = sum(times) / len(times), sum(frees) / len(frees)
        spread = sum((time - mean_time) ** 2 for time in times)
        slope = sum((time - mean_time) * (free - mean_free) for time, free in self._seen) / spread
        if slope >= 0:
            return None
        left_s = max(0.0, frees[-1] / -slope)
        return left_s if left_s < _LATEST_S else None
