"""The processes that train one model together, as this one sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# What connects the processes: the frameworks whose services carry messages.
JobKind = Literal["jax", "torch", "tensorflow", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The processes that train together.

    Attributes:
        kind: The framework that connects them.
        by: The same as the user calls it, such as ``"jax.distributed"``; for messages.
        process: The number of this process, from 0.
        processes: Their number; 1 where a program has initialised its framework for one process.
        found_in: Where these facts are from, such as ``"torch.distributed's default process group"``.
        lacks_messages: Why no messages can be sent between them, or None.

    Example:
        >>> job = Job(kind="jax", by="jax.distributed", process=1, processes=4, found_in="jax.distributed")
        >>> job.is_leader, job.has_others, list(job.others)
        (False, True, [1, 2, 3])
    """

    kind: JobKind
    by: str
    process: int
    processes: int
    found_in: str
    lacks_messages: str | None = None

    @property
    def is_leader(self) -> bool:
        """True for process 0, which announces and decides."""
        return self.process == 0

    @property
    def has_others(self) -> bool:
        """True if there is another process than this one."""
        return self.processes > 1

    @property
    def others(self) -> range:
        """The numbers of the processes that do not lead."""
        return range(1, self.processes)
