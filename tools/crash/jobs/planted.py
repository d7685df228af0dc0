"""Faults planted in every process of a job, to prove that its trials would find them."""

from __future__ import annotations

from collections.abc import Callable

from ckptstore.distributed.resuming import JoinResume
from crash.planted_faults import FAULTS as FAULTS_OF_ONE_PROCESS


def _confirms_everything() -> None:
    """Begin with a checkpoint that could not be loaded."""
    JoinResume.object_to = lambda join, kind, reason: join.confirm()  # type: ignore[method-assign, assignment]


FAULTS: dict[str, Callable[[], None]] = {
    "row before rename": FAULTS_OF_ONE_PROCESS["row before rename"],
    "confirms everything": _confirms_everything,
}


def plant(name: str) -> None:
    """Plant a fault in this process; none for ``""``."""
    if name:
        FAULTS[name]()
