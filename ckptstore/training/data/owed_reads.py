"""Reads of tf.data pipelines that fits have left out, since their runs were finished, and that later fits depend on.

A pipeline that shuffles has another order in each iteration, and counts its iterations for all that read from it. A fit
with ``steps_per_epoch`` over a pipeline that repeats iterates many times, as it reads. Where its run is finished, it
reads nothing; it owes these reads to a fit that trains on the same pipeline later in the process. To read a month's
data again for a script that only ends would be a waste, so that they are made only then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ckptstore.keras.private import ordered_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class _OwedRead:
    stages: dict[int, Any]
    read: Callable[[], None]


_owed: list[_OwedRead] = []


def owe(source: Any, read: Callable[[], None]) -> None:
    """Note what a finished fit did not read.

    Args:
        source: Its data.
        read: Reads it.
    """
    stages = ordered_stages(source)
    if stages:
        _owed.append(_OwedRead(stages=stages, read=read))


def settle(*sources: Any) -> None:
    """Read what finished fits have not read of the pipelines that a fit is about to train on or to validate with.

    Args:
        sources: The data of the fit that begins.
    """
    if not _owed:
        return
    shared = {id(stage) for source in sources for stage in ordered_stages(source).values()}
    for owed in [owed for owed in _owed if not shared.isdisjoint(owed.stages)]:
        _owed.remove(owed)
        owed.read()
