"""Detector of losses that went bad: not finite, or a spike over a robust bound. Pure arithmetic on batch losses.

A loss is *high* if it exceeds

    median + max(10 * spread, (top - median) / 2, 3 * rise),    spread = max(1.4826 * MAD, |median| / 10)

with the median and the median absolute deviation (MAD) of the last 64 losses; ``top``, the greatest median of 16 losses
in a row that the run has had; and ``rise``, by how much at most the second highest of 16 losses in a row was above the
median of these or an earlier 16, within the last 512. So it is ten robust standard deviations above the recent losses,
at least twice as large, has undone half of what the training has learned since it began, and is three times as far up
as the training lately was and came back from. The first two are the modified z-score of Iglewicz and Hoaglin, How to
Detect and Handle Outliers (1993), with a bound of 10 where they propose 3.5 for a single look at normal data: here
there are millions of looks, at data with heavy tails. The third lets a learning rate restart. The fourth is for losses
that swing, as those of adversaries do, and for those that are zero for most batches, as a margin's are.

One high loss is an outlier, which a hard batch can explain, and three in a row are a spike: the weights have changed.
There is no bound until 64 losses are known. NaN and infinity are bad at once, always.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Any, Literal

import numpy as np

WINDOW = 64
SPREADS = 10.0
RISES = 3.0
LEAST_SPREAD = 0.1
IN_A_ROW = 3
# The bound is computed again after so many losses: two sorts of the window cost more than a batch hook may.
_BLOCK = 16
# Blocks in which a loss may have risen before.
_BLOCKS = 32
_MAD_OF_NORMAL = 1.4826


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLoss:
    """A loss that went bad.

    Attributes:
        kind: ``"not finite"`` or ``"spike"``.
        value: The loss; of a log that is a mean over the epoch, this batch's own.
        bound: The bound that it exceeds; None for a loss that is not finite.
        name: Name of the log.
        epoch: Zero-based index of the epoch.
        batch: Zero-based index of the batch (of several that are executed at once, the last); None at the epoch's end.
        sound_step: Finished batches of the run when the losses were last sound: a checkpoint of a later step may
            already have suffered.
    """

    kind: Literal["not finite", "spike"]
    value: float
    bound: float | None = None
    name: str = "loss"
    epoch: int
    batch: int | None
    sound_step: int

    @property
    def where(self) -> str:
        """The position as people count: both from 1."""
        return f"epoch {self.epoch + 1}" + ("" if self.batch is None else f", batch {self.batch + 1}")

    @property
    def what(self) -> str:
        """The loss in words."""
        over = "" if self.bound is None else f", over the bound of {self.bound:.4g} for {IN_A_ROW} batches"
        return f"{self.name} is {self.value:.4g}{over}"

    def detail(self) -> dict[str, Any]:
        """Return the loss as JSON, for an event; a value that is not finite as text."""
        value = self.value if math.isfinite(self.value) else str(self.value)
        return {
            "kind": self.kind,
            "name": self.name,
            "value": value,
            "bound": self.bound,
            "epoch": self.epoch,
            "batch": self.batch,
        }


class LossDetector:
    """Tells sound losses from bad ones, batch by batch.

    Attributes:
        bound: A loss above this is high; infinite until enough losses are known.
        sound_step: Finished batches of the run before the losses began to rise, or before the newest one.
        is_suspicious: True after a high loss that is not yet a spike.
        is_rising: True after a loss with which a spike may begin, high or not.

    Example:
        >>> detector = LossDetector()
        >>> for step in range(100):
        ...     assert not detector.is_bad(2.0 + step % 5 / 10, step)
        >>> round(detector.bound, 2)
        4.4
        >>> [detector.is_bad(9.0, step) for step in (100, 101, 102)], detector.sound_step
        ([False, False, True], 100)
        >>> detector.is_bad(float("nan"), 103)
        True
    """

    def __init__(self) -> None:
        self.bound = math.inf
        self.sound_step = 0
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._outliers: list[float] = []
        self._blocks: deque[tuple[float, float]] = deque(maxlen=_BLOCKS)
        self._median = 0.0
        self._top = -math.inf
        self._new = 0
        self._high = 0
        self.is_rising = False

    @property
    def is_suspicious(self) -> bool:
        """True after a high loss that is not yet a spike."""
        return self._high > 0

    def is_bad(self, loss: float, step: int, *, error: float = 0.0) -> bool:
        """Return True if the loss of one more batch is bad.

        Args:
            loss: The loss.
            step: Finished batches of the run before this one.
            error: How far the loss may be off: it is computed from rounded numbers.
        """
        loss -= error
        # A rise that leads to a spike begins below the bound.
        is_raised = not loss <= self._median + (self.bound - self._median) / 4
        if not (is_raised and self.is_rising):
            self.sound_step = step
        self.is_rising = is_raised
        if not math.isfinite(loss):
            return True
        if loss > self.bound:
            self._high += 1
            self._outliers.append(loss)
            return self._high >= IN_A_ROW
        self._high = 0
        for known in (*self._outliers, loss):
            self._add(known)
        self._outliers.clear()
        return False

    def _add(self, loss: float) -> None:
        self._losses.append(loss)
        self._new += 1
        if self._new < _BLOCK:
            return
        self._new = 0
        block = list(self._losses)[-_BLOCK:]
        self._blocks.append((median(block), sorted(block)[-2]))
        self._top = max(self._top, self._blocks[-1][0])
        if len(self._losses) < WINDOW:
            return
        middle = self._median = median(self._losses)
        deviation = median([abs(known - middle) for known in self._losses])
        spread = max(_MAD_OF_NORMAL * deviation, LEAST_SPREAD * abs(middle))
        self.bound = middle + max(SPREADS * spread, (self._top - middle) / 2, RISES * self._greatest_rise())

    def _greatest_rise(self) -> float:
        lowest = accumulate((middle for middle, _ in self._blocks), min)
        return max(highest - low for (_, highest), low in zip(self._blocks, lowest, strict=True))

    def end_rise(self) -> None:
        """Judge the next loss by itself: the weights are other ones."""
        self._high, self.is_rising = 0, False
        self._outliers.clear()

    def begin_again(self) -> None:
        """Forget the losses, and take the next ones as the ordinary ones; a rise back to them is none to tell of."""
        self._losses.clear()
        self.bound, self._new = math.inf, 0
        self.end_rise()

    # --- a fit that is resumed -----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the state, for `set_state` in another process."""
        numbers = [self.bound, self._median, self._top]
        counts = [self.sound_step, self._new, self._high, int(self.is_rising)]
        return {
            "losses": np.array(self._losses, dtype="float64"),
            "outliers": np.array(self._outliers, dtype="float64"),
            "blocks": np.array(self._blocks, dtype="float64").reshape(-1, 2),
            "numbers": np.array(numbers, dtype="float64"),
            "counts": counts,
        }

    def set_state(self, saved: Mapping[str, Any]) -> None:
        """Continue with what `state` returned."""
        self._losses = deque(map(float, saved["losses"]), maxlen=WINDOW)
        # Stores of the first versions have neither.
        self._outliers = [float(loss) for loss in saved.get("outliers", ())]
        self._blocks = deque(
            ((float(low), float(high)) for low, high in saved.get("blocks", ())), maxlen=_BLOCKS
        )
        self.bound, self._median, self._top = map(float, saved["numbers"])
        self.sound_step, self._new, self._high, rising = map(int, saved["counts"])
        self.is_rising = bool(rising)
