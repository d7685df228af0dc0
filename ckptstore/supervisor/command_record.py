"""The record of a command that a supervisor has started, by which a later one finds it while it still runs."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ckptstore.storage import files
from ckptstore.system.facts.secrets import without_secrets
from ckptstore.system.process_tree import Process, look_at
from ckptstore.system.processes import boot_id, start_ticks

_RECORD_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """The facts about a command that a supervisor has started.

    Attributes:
        pid: Its process id, which is also the id of its session; 0 before it was started.
        started_ticks: When that process was started, in the kernel's clock ticks; None where unknown.
        boot_id: The kernel's id of this start of the machine; None where it has none.
        host: Name of the machine.
        command: Program and arguments, without secrets.
        log: The file with its output; empty where there is none.
        inode: The number of that file, by which it is found when it was renamed.
        token: The name of this start, which its attempts record.
    """

    pid: int
    started_ticks: int | None
    boot_id: str | None
    host: str
    command: tuple[str, ...]
    log: str
    inode: int
    token: str

    def of_process(self, pid: int) -> CommandRecord:
        """Return the record of the command that runs as a process."""
        return replace(self, pid=pid, started_ticks=start_ticks(pid))

    def process(self) -> Process | None:
        """Return the process; None if it has ended, or is one of another machine."""
        if self.host != socket.gethostname() or self.boot_id != boot_id():
            return None
        found = look_at(self.pid)
        same = found is not None and not found.is_dead and found.started_ticks == self.started_ticks
        return found if same else None


def record_of(command: tuple[str, ...], log: str, inode: int, token: str) -> CommandRecord:
    """Return the record of a command that is about to be started."""
    return CommandRecord(
        pid=0,
        started_ticks=None,
        boot_id=boot_id(),
        host=socket.gethostname(),
        command=without_secrets(command),
        log=log,
        inode=inode,
        token=token,
    )


def write_record(descriptor: int, path: Path, record: CommandRecord) -> None:
    """Write the record of a command, in place of one before; not durable, as no process outlives a power cut."""
    content = json.dumps(asdict(record)).encode()
    if len(content) > _RECORD_BYTES:
        content = json.dumps({**asdict(record), "command": [*record.command[:1], "..."]}).encode()
    os.pwrite(descriptor, content + b"\n", 0)
    files.truncate(descriptor, path, len(content) + 1)


def read_record(path: Path) -> CommandRecord | None:
    """Return the record in a file; None if there is none, or it cannot be read."""
    content = read_object(path)
    with suppress(TypeError, KeyError):
        if content is not None:
            return CommandRecord(**{**content, "command": tuple(content["command"])})
    return None


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a small file; None if there is none, or it cannot be read."""
    with suppress(OSError, ValueError):
        # Behind the first line may stand the end of a longer record before it, which was not cut off yet.
        found = json.loads(path.read_bytes()[:_RECORD_BYTES].partition(b"\n")[0])
        return found if isinstance(found, dict) else None
    return None
