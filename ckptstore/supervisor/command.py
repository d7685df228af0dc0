"""The command that is supervised: a child of this supervisor, or of one before it that was killed."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress

from ckptstore.supervisor.children import Reaper, send, wait_descriptor
from ckptstore.supervisor.command_record import CommandRecord
from ckptstore.system.process_tree import Process, look_at
from ckptstore.system.processes import EXIT_CODE, START_TICKS, STATE, stat_fields

# The ioctl PIDFD_GET_INFO of Linux 6.15 and later, the bit that asks for the exit status, and where that stands.
_GET_INFO, _INFO_NBYTES, _ASK_EXIT, _EXIT_AT = 0xC040FF0B, 64, 1 << 3, 60


class Command:
    """A command that was started, until it has ended.

    Args:
        record: The facts about it.
        reaper: Collects the exit code if it is a child of this process.
        is_child: False if a supervisor before this one has started it.

    Attributes:
        record: The facts about it.
        is_child: As above.
        has_ended: True once it has.
        exit_code: Its exit code then, negative for the signal that killed it; None while it runs, or where the system
            does not tell.
        descriptor: A descriptor that becomes readable when it ends, or None.
    """

    def __init__(self, record: CommandRecord, reaper: Reaper, *, is_child: bool) -> None:
        self.record = record
        self.is_child = is_child
        self.has_ended = False
        self.exit_code: int | None = None
        self._reaper = reaper
        self.process = look_at(record.pid) or Process(
            pid=record.pid,
            parent=0,
            session=record.pid,
            started_ticks=record.started_ticks or 0,
            is_dead=False,
        )
        self.descriptor = wait_descriptor(record.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.record.pid

    def look(self) -> bool:
        """Look whether it has ended; returns `has_ended`."""
        if self.has_ended:
            return True
        self._reaper.collect()
        if self.is_child:
            self.exit_code = self._reaper.exit_code(self.pid)
            self.has_ended = self.exit_code is not None
        elif self.record.process() is None:
            self.exit_code, self.has_ended = self._code_of_foreign_child(), True
        if self.has_ended and self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        return self.has_ended

    def send(self, number: int) -> bool:
        """Send it a signal; returns False if it is gone."""
        return not self.has_ended and send(self.process, number)

    def _code_of_foreign_child(self) -> int | None:
        """Return the exit code of a process that another one has reaped, or will; None where nothing tells it."""
        with suppress(OSError, TypeError, ValueError):
            info = bytearray(_INFO_NBYTES)
            struct.pack_into("Q", info, 0, _ASK_EXIT)
            fcntl.ioctl(self.descriptor or -1, _GET_INFO, info)
            if struct.unpack_from("Q", info, 0)[0] & _ASK_EXIT:
                return os.waitstatus_to_exitcode(struct.unpack_from("i", info, _EXIT_AT)[0])
        fields = stat_fields(self.pid)
        if (
            fields is not None
            and fields[STATE] == "Z"
            and int(fields[START_TICKS]) == self.record.started_ticks
        ):
            return os.waitstatus_to_exitcode(int(fields[EXIT_CODE]))  # nobody has reaped it yet
        return None
