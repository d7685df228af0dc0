"""Forbids a system call in this process and its children, as the rules of a container do: it fails from then on."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

_NUMBERS = {
    "eventfd2": {"x86_64": 290, "aarch64": 19},
    "memfd_create": {"x86_64": 319, "aarch64": 279},
    "pidfd_open": {"x86_64": 434, "aarch64": 434},
    "process_vm_readv": {"x86_64": 310, "aarch64": 270},
    "sched_setscheduler": {"x86_64": 144, "aarch64": 119},
    "setpriority": {"x86_64": 141, "aarch64": 140},
    "socketpair": {"x86_64": 53, "aarch64": 199},
}
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_FAIL_WITH, _ALLOW = 0x50000, 0x7FFF0000


needs_the_number = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the numbers of system calls are unknown here"
)


def output_of(script: str) -> str:
    """Run a script, which may call `forbid`, in a process of its own; returns its output."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def forbid(call: str, error: int = errno.EPERM) -> None:
    """Forbid a system call in this process for the rest of its life, and in the children that it starts.

    Args:
        call: The name of the call.
        error: The error number that it fails with.

    Raises:
        OSError: System calls cannot be forbidden here.
    """
    steps = (
        (_LOAD, 0, 0, 0),
        (_JUMP_IF_EQUAL, 0, 1, _NUMBERS[call][platform.machine()]),
        (_RETURN, 0, 0, _FAIL_WITH | error),
        (_RETURN, 0, 0, _ALLOW),
    )
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "a call cannot be forbidden here")
