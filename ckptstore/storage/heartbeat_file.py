"""The file of a heartbeat: its format, and the locks on it that tell who is alive.

The file is ``heartbeats/<run>``, 1024 bytes: a checksum, then one JSON object. It is overwritten in place and never
synced; what is torn or foreign reads as nothing.

The training holds a lock on the file's first byte for as long as it lives, and a process that saves for it one on the
second. A reader asks the kernel whether a lock is held, which takes nothing and waits for nothing.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

import xxhash

from ckptstore.records import PHASES, Beat
from ckptstore.storage.byte_locks import is_byte_locked, lock_byte, open_to_read
from ckptstore.system.processes import boot_id, process_state

NBYTES = 1024
# The byte that a training locks, and the one that processes lock which save for it.
TRAINING, _SAVING = 0, 1
_READS = 3
_DIGEST_CHARACTERS = 16


def encode(fields: dict[str, Any]) -> bytes:
    """Return the bytes of a heartbeat's file, without those metrics that there is no room for.

    Args:
        fields: The attributes of a `Beat` as JSON; metrics are removed from it until it fits.

    Raises:
        OSError: It does not fit even without metrics.
    """
    metrics = fields["metrics"]
    while True:
        text = json.dumps(fields, separators=(",", ":")).encode("ascii")
        if len(text) + _DIGEST_CHARACTERS + 2 <= NBYTES:
            break
        if not metrics:
            raise OSError(errno.EMSGSIZE, "the record is too long")
        metrics.popitem()
    body = text.ljust(NBYTES - _DIGEST_CHARACTERS - 2) + b"\n"
    return xxhash.xxh3_64_hexdigest(body).encode("ascii") + b" " + body


def read_heartbeat(path: Path) -> Beat | None:
    """Return what a heartbeat's file says; None if there is none, or it is torn or somebody else's. Changes nothing.

    Args:
        path: The file, ``Layout.heartbeats / run``.
    """
    for _ in range(_READS):  # a read may fall into a write
        content = _content(path)
        if content is None or len(content) != NBYTES:
            return None
        digest, _, body = content.partition(b" ")
        if digest == xxhash.xxh3_64_hexdigest(body).encode("ascii"):
            return _parsed(body)
    return None


def _content(path: Path) -> bytes | None:
    try:
        descriptor = open_to_read(path)
    except OSError:
        return None
    try:
        return os.pread(descriptor, NBYTES + 1, 0)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _parsed(body: bytes) -> Beat | None:
    try:
        beat = Beat(**json.loads(body))
    except (ValueError, TypeError):
        return None  # of another version of this program
    return beat if beat.phase in PHASES else None


def is_held(path: Path) -> bool:
    """Return True if the training that writes a heartbeat's file is alive, since it holds the file's lock.

    It takes no lock, writes nothing and waits for nothing. Where the system has no such locks (macOS, some network file
    systems), the process id in the file is asked instead, with the start of that process where the system tells it; it
    means something on the same machine only, and elsewhere the answer is False.

    Args:
        path: The file, ``Layout.heartbeats / run``.
    """
    held = is_byte_locked(path, TRAINING)
    if held is not None:
        return held
    beat = read_heartbeat(path)
    return beat is not None and _is_alive(beat)


def is_saving(path: Path) -> bool:
    """Return True if a process that saves for a training of this run is alive; the training itself may be dead.

    As `is_held`; where the system has no such locks, the answer is False.

    Args:
        path: The file, ``Layout.heartbeats / run``.
    """
    return bool(is_byte_locked(path, _SAVING))


def mark_saving(path: Path) -> int | None:
    """Let `is_saving` answer True until this process has closed the returned descriptor, or is dead.

    Several processes may do so at once.

    Args:
        path: The file, ``Layout.heartbeats / run``, which the training has made.

    Returns:
        The descriptor, or None if the file cannot be read, or not locked.
    """
    try:
        descriptor = open_to_read(path)
    except OSError:
        return None
    if lock_byte(descriptor, _SAVING, shared=True):
        return descriptor
    os.close(descriptor)
    return None


def _is_alive(beat: Beat) -> bool:
    if beat.phase == "ended" or beat.host != socket.gethostname() or beat.boot_id != boot_id():
        return False
    return process_state(beat.pid, beat.started_ticks) != "gone"
