"""Reads of tf.data pipelines that fits have left out, since their runs were finished, and that later fits depend on.

A pipeline that shuffles has another order in each iteration, and counts its iterations for all that read from it. A fit
with ``steps_per_epoch`` over a pipeline that repeats iterates many times, as it reads. Where its run is finished, it
reads nothing; it owes these reads to whatever iterates over the same pipeline later in the process: another fit, or the
script itself. To read a month's data again for a script that only ends would be a waste, so that they are made only
then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ckptstore.keras.private import IterationHook, ordered_stages


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
        _hook.install()


def settle(*sources: Any) -> None:
    """Read what finished fits have not read of pipelines that are about to be iterated over.

    Args:
        sources: The pipelines.
    """
    if not _owed:
        return
    shared = {id(stage) for source in sources for stage in ordered_stages(source).values()}
    while owed := next((owed for owed in _owed if not shared.isdisjoint(owed.stages)), None):
        # First: to read it asks for the others.
        _owed.remove(owed)
        owed.read()
    if not _owed:
        _hook.remove()


# Where TensorFlow hands out iterators of pipelines spread over devices, only the fit itself calls `settle`.
_hook = IterationHook(settle)
