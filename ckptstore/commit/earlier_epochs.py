"""The earlier epochs that a checkpoint brings metrics of, as the description in its payload lists them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ckptstore.records import FinishedEpoch
from ckptstore.validation import check_metrics, check_position

EARLIER_EPOCHS = "earlier_epochs"


def read_earlier_epochs(description: Mapping[str, Any]) -> tuple[FinishedEpoch, ...]:
    """Return the earlier epochs in a payload's description, each checked; payloads of earlier versions have none.

    Raises:
        ValueError: They are not what ckptstore writes; likewise KeyError, TypeError and AttributeError.

    Example:
        >>> read_earlier_epochs({})
        ()
    """
    found = [_read(entry) for entry in description.get(EARLIER_EPOCHS, [])]
    if len({epoch.epoch for epoch in found}) < len(found):
        raise ValueError("an earlier epoch is listed twice")
    return tuple(found)


def _read(entry: Mapping[str, Any]) -> FinishedEpoch:
    check_position(entry["epoch"], None, entry["step"])
    ended_at = datetime.fromisoformat(entry["ended_at"])
    if ended_at.tzinfo is None:
        raise ValueError("ended_at has no time zone")
    return FinishedEpoch(
        epoch=entry["epoch"],
        step=entry["step"],
        ended_at=ended_at.astimezone(UTC),
        metrics=check_metrics({name: float(value) for name, value in entry["metrics"].items()}),
    )
