"""The rule by size: the oldest and worst go first, until the rest fits."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice

from ckptstore.errors import InvalidArgumentError
from ckptstore.records import Checkpoint, Mode
from ckptstore.retention.best import One, check_mode
from ckptstore.retention.policy import Policy
from ckptstore.retention.reasons import SharedReasons
from ckptstore.retention.rule import Reasons, RetentionFacts, Rule, RunView
from ckptstore.validation import check_metric_name

# The worst of so many oldest goes first.
AMONG = 10
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kMGTP]?i?B)?\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def max_bytes(nbytes: int | str, metric: str | None = None, mode: Mode | None = None) -> Policy:
    """Keep as many of a run's checkpoints as fit a number of bytes; the oldest go first, or the oldest and worst.

    With a metric, of the ten oldest the worst by it goes, and that again and again until the rest fits; a checkpoint
    without the metric, or with NaN, is the worst. What always stays, the best and the resume point say, counts and
    does not go.

    Joined by ``|`` it keeps what fits beside what other rules keep. To bound what they keep, join it by ``&``:
    ``(keep_last(50) | keep_every(epochs=10)) & max_bytes("20 GB")``.

    Args:
        nbytes: Bytes of the run's payloads; or text with a unit, ``"20 GB"`` or ``"512 MiB"``.
        metric: The metric by which a checkpoint is worse.
        mode: Its better direction; None for the one that its name tells.

    Raises:
        InvalidArgumentError: An argument cannot be used, or `mode` is needed.

    Example:
        >>> max_bytes("1.5 GB"), max_bytes(10_000, "val_loss")
        (max_bytes(1500000000), max_bytes(10000, 'val_loss', mode='min'))
    """
    size = parse_size(nbytes)
    if metric is None:
        if mode is not None:
            raise InvalidArgumentError(argument="mode", value=mode, reason="needs a metric beside it")
        return Policy(f"max_bytes({size})", MaxBytes(size), is_builtin=True)
    direction = check_mode(check_metric_name(metric), mode)
    name = f"max_bytes({size}, {metric!r}, mode={direction!r})"
    return Policy(name, MaxBytes(size, metric, direction), is_builtin=True)


def parse_size(size: object) -> int:
    """Return a size in bytes.

    Raises:
        InvalidArgumentError: It is neither a positive integer nor text such as ``"20 GB"``.

    Example:
        >>> parse_size("20 GB"), parse_size("1 KiB")
        (20000000000, 1024)
    """
    found: int | None = None
    if isinstance(size, str) and (match := _SIZE.fullmatch(size)):
        number, unit = match[1], (match[2] or "B").lower()
        base = 1024 if "i" in unit else 1000
        found = round(float(number) * float(base) ** _POWERS[unit.rstrip("b").rstrip("i")])
    elif isinstance(size, int) and not isinstance(size, bool):
        found = size
    if found is None or found < 1:
        raise InvalidArgumentError(
            argument="nbytes",
            value=size,
            reason="must be a number of bytes above zero, or text such as '20 GB'",
        )
    return found


@dataclass(frozen=True, slots=True)
class MaxBytes(Rule):
    """What fits."""

    nbytes: int
    metric: str | None = None
    mode: Mode = "min"

    @property
    def modes(self) -> Iterable[tuple[str, Mode]]:
        """The metric, if there is one."""
        return () if self.metric is None else ((self.metric, self.mode),)

    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return what is left when the rest has gone."""
        excess = sum(checkpoint.nbytes for checkpoint in checkpoints) - self.nbytes
        candidates = (checkpoint for checkpoint in checkpoints if checkpoint.version not in always)
        why = ("max_bytes",)
        gone = SharedReasons((checkpoint.version, why) for checkpoint in self.too_many(candidates, excess))
        return SharedReasons((one.version, why) for one in checkpoints if one.version not in gone)

    def too_many(self, oldest: Iterator[One], excess: int) -> Iterator[One]:
        """Yield what goes, until it has freed a number of bytes.

        Args:
            oldest: What may go, oldest first.
            excess: Bytes to be freed.
        """
        window = list(islice(oldest, AMONG))
        while excess > 0 and window:
            going = window[0] if self.metric is None else max(window, key=self._badness)
            window.remove(going)
            window.extend(islice(oldest, 1))
            excess -= going.nbytes
            yield going

    def _badness(self, checkpoint: RetentionFacts) -> tuple[float, int]:
        value = checkpoint.metrics.get(self.metric or "", math.nan)
        if math.isnan(value):
            return math.inf, -checkpoint.version
        return value if self.mode == "min" else -value, -checkpoint.version

    def going(self, view: RunView) -> Iterator[Checkpoint]:
        """Yield what does not fit any more, in the order in which it goes."""
        freed = {checkpoint.version for checkpoint in view.already_expired}
        excess = view.nbytes - self.nbytes - sum(checkpoint.nbytes for checkpoint in view.already_expired)
        if self.metric is not None:
            oldest = (checkpoint for checkpoint in view.oldest() if checkpoint.version not in freed)
            yield from self.too_many(oldest, excess)
            return
        after, passed = view.budgets.begin(self, excess)
        oldest = (one for one in view.oldest(after, without_metrics=True) if one.version not in freed)
        for checkpoint in self.too_many(oldest, excess - passed):
            view.budgets.note(self, checkpoint.version, checkpoint.nbytes)
            yield checkpoint

    def candidates(self, view: RunView) -> Collection[int]:
        """Return what does not fit any more; what did not before, and is kept by others, may be left out."""
        return view.remember(self, lambda: {checkpoint.version for checkpoint in self.going(view)})

    def keeps(self, view: RunView, checkpoint: Checkpoint) -> bool:
        """Tell whether it fits."""
        found = self.candidates(view)
        if self.metric is not None:
            return checkpoint.version not in found
        return checkpoint.version > view.budgets.upto(self)
