"""Cost of a run's last saves, for the training that waited for them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from statistics import fmean

from ckptstore.records import SavingCost


def cost_of(saves: Sequence[tuple[datetime, float | None]]) -> SavingCost | None:
    """Return the cost of saves, or None where the training's waiting is not known of any of them.

    Those of which it is known stand for the others, whose checkpoints retention has removed.

    Args:
        saves: When each was recorded, newest first, and the seconds that the training waited for it, if known.

    Example:
        >>> from datetime import UTC, timedelta
        >>> newest = datetime(2026, 1, 1, tzinfo=UTC)
        >>> cost = cost_of([(newest, 0.5), (newest - timedelta(seconds=50), None)])
        >>> cost.saves, cost.blocked_s, cost.share
        (2, 0.5, 0.01)
    """
    known = [blocked_s for _, blocked_s in saves if blocked_s is not None]
    if not known:
        return None
    blocked_s = fmean(known)
    between_s = (saves[0][0] - saves[-1][0]).total_seconds()
    share = blocked_s * (len(saves) - 1) / between_s if between_s > 0 else None
    return SavingCost(saves=len(saves), blocked_s=blocked_s, share=None if share is None else min(1.0, share))
