"""`max_bytes`: the rule by size, under which the oldest and worst expire first until the rest fits."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice

from ckptstore.errors import InvalidArgumentError
from ckptstore.records import Checkpoint, Mode
from ckptstore.retention.best import FactsT, check_mode
from ckptstore.retention.policy import Policy
from ckptstore.retention.reasons import SharedReasons
from ckptstore.retention.rule import Reasons, RetentionFacts, Rule, RunView
from ckptstore.validation import check_metric_name

# The worst of this many oldest expires first.
WINDOW = 10
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kMGTP]?i?B)?\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def max_bytes(nbytes: int | str, metric: str | None = None, mode: Mode | None = None) -> Policy:
    """Keep as many of a run's checkpoints as fit a number of bytes; the oldest expire first, or the oldest and worst.

    With a metric, the worst by it of the ten oldest expires, again and again until the rest fits; a checkpoint without
    the metric, or with NaN, is the worst. Checkpoints that always stay, such as the best and the resume point, count
    and do not expire.

    Joined by ``|`` it keeps what fits in addition to what other rules keep. To limit what they keep, join it by ``&``:
    ``(keep_last(50) | keep_every(epochs=10)) & max_bytes("20 GB")``.

    Args:
        nbytes: The most bytes of the run's payloads; or text with a unit, ``"20 GB"`` or ``"512 MiB"``.
        metric: The metric by which the worst is chosen.
        mode: Its better direction; None for the usual one of its name.

    Raises:
        InvalidArgumentError: An argument cannot be used, or `mode` is needed.

    Example:
        >>> max_bytes("1.5 GB"), max_bytes(10_000, "val_loss")
        (max_bytes(1500000000), max_bytes(10000, 'val_loss', mode='min'))
    """
    size = parse_size(nbytes)
    if metric is None:
        if mode is not None:
            raise InvalidArgumentError(argument="mode", value=mode, reason="needs a metric too")
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
    """Keeps what fits a number of bytes."""

    nbytes: int
    metric: str | None = None
    mode: Mode = "min"

    @property
    def modes(self) -> Iterable[tuple[str, Mode]]:
        """The metric, if there is one."""
        return () if self.metric is None else ((self.metric, self.mode),)

    def reasons(self, checkpoints: Sequence[RetentionFacts], always: AbstractSet[int]) -> Reasons:
        """Return what is left when the rest has expired."""
        excess = sum(checkpoint.nbytes for checkpoint in checkpoints) - self.nbytes
        candidates = (checkpoint for checkpoint in checkpoints if checkpoint.version not in always)
        why = ("max_bytes",)
        expired = SharedReasons((checkpoint.version, why) for checkpoint in self._free(candidates, excess))
        kept = (checkpoint.version for checkpoint in checkpoints if checkpoint.version not in expired)
        return SharedReasons((version, why) for version in kept)

    def _free(self, oldest: Iterator[FactsT], excess: int) -> Iterator[FactsT]:
        """Yield checkpoints that expire, until a number of bytes is freed.

        Args:
            oldest: Checkpoints that may expire, oldest first.
            excess: Bytes to free.
        """
        window = list(islice(oldest, WINDOW))
        while excess > 0 and window:
            expired = window[0] if self.metric is None else max(window, key=self._badness)
            window.remove(expired)
            window.extend(islice(oldest, 1))
            excess -= expired.nbytes
            yield expired

    def _badness(self, checkpoint: RetentionFacts) -> tuple[float, int]:
        value = checkpoint.metrics.get(self.metric or "", math.nan)
        if math.isnan(value):
            return math.inf, -checkpoint.version
        return value if self.mode == "min" else -value, -checkpoint.version

    def over_budget(self, view: RunView) -> Iterator[Checkpoint]:
        """Yield what no longer fits, in the order in which it expires."""
        freed = {checkpoint.version for checkpoint in view.already_expired}
        excess = view.nbytes - self.nbytes - sum(checkpoint.nbytes for checkpoint in view.already_expired)
        if self.metric is not None:
            oldest = (checkpoint for checkpoint in view.oldest() if checkpoint.version not in freed)
            yield from self._free(oldest, excess)
            return
        after, nbytes = view.budgets.begin(self, excess)
        rest = view.oldest(after, without_metrics=True)
        oldest = (checkpoint for checkpoint in rest if checkpoint.version not in freed)
        for checkpoint in self._free(oldest, excess - nbytes):
            view.budgets.add(self, checkpoint.version, checkpoint.nbytes)
            yield checkpoint

    def candidates(self, view: RunView) -> Collection[int]:
        """Return what no longer fits; without, perhaps, what did not fit before and other rules keep."""
        return view.cached(self, lambda: {checkpoint.version for checkpoint in self.over_budget(view)})

    def keeps(self, view: RunView, checkpoint: Checkpoint) -> bool:
        """Return True if it fits."""
        found = self.candidates(view)
        if self.metric is not None:
            return checkpoint.version not in found
        return checkpoint.version > view.budgets.expires_up_to(self)
