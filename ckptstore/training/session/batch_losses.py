"""Each batch's own loss, from the logs: Keras logs the mean over the epoch so far.

After n executions with mean m, the loss of the newest is n * m(n) - (n - 1) * m(n - 1). The last batch of an epoch may
be smaller and then counts for less in Keras' mean, so that its loss comes out nearer to the mean than it is. The means
are rounded: the difference is off by a few units in the last place of n * m. A model with a step of its own may log
the loss of the batch itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Largest relative error of a number with this many bits: each mean is rounded, and so is the sum it comes from.
_UNITS = 2.0
_PRECISION = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float64": 2.0**-53}


class BatchLosses:
    """Computes the loss of each batch from what is logged.

    Args:
        is_mean: True if the logs are means over the epoch, False if they are the batches' own, None if not known: then
            only the first loss of an epoch is, and those that are not finite.
        dtype: The dtype in which Keras computes metrics.

    Attributes:
        is_mean: As above.
        count: Executions in the mean; None if not known, until an epoch begins.

    Example:
        >>> losses = BatchLosses(True)
        >>> [round(losses.of(mean)[0], 6) for mean in (4.0, 3.0, 3.0)]
        [4.0, 2.0, 3.0]
        >>> losses.begin_epoch()
        >>> losses.of(1.5)[0]
        1.5
    """

    def __init__(self, is_mean: bool | None, dtype: str = "float32") -> None:
        self.is_mean = is_mean
        self.count: int | None = 0
        self._mean = 0.0
        self._precision = _UNITS * _PRECISION.get(dtype, 2.0**-24)

    def begin_epoch(self) -> None:
        """Begin with an empty mean: Keras has reset its metrics."""
        self.count, self._mean = 0, 0.0

    def of(self, logged: float) -> tuple[float | None, float]:
        """Return the loss of one more batch, and how far it may be off; the loss is None if it is not known."""
        if self.is_mean is False:
            return logged, 0.0
        count, mean = self.count, self._mean
        if count is not None:
            self.count, self._mean = count + 1, logged
        if not math.isfinite(logged) or count == 0:
            return logged, 0.0
        if count is None or self.is_mean is None or not math.isfinite(mean):
            return None, 0.0
        total = (count + 1) * logged
        return total - count * mean, self._precision * (abs(total) + abs(count * mean))

    # --- a fit that is resumed -----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the state, for `set_state` in another process."""
        mean = self._mean if math.isfinite(self._mean) else None
        return {"is_mean": self.is_mean, "count": self.count, "mean": mean}

    def set_state(self, saved: Mapping[str, Any] | None) -> None:
        """Continue with what `state` returned; None if that is not known."""
        if saved is None:
            self.count = None
            return
        self.is_mean, self.count = saved["is_mean"], saved["count"]
        self._mean = math.nan if saved["mean"] is None else float(saved["mean"])
