"""Runs work in a child under strace: to kill it at a system call, to let a call fail, or to record all calls.

The child is forked from a warm server process that has imported what the work needs, stops before its first line, and
continues once strace is attached. So a run costs tenths of a second, however heavy the imports.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from crash.fork_server import CONTEXT, preload

# Calls that can change a file system. `?` makes strace ignore calls that this machine does not have.
MUTATING = (
    "?mkdir,mkdirat,?rename,?renameat,renameat2,?link,linkat,?unlink,unlinkat,?symlink,symlinkat,"
    "write,writev,pwrite64,?pwritev,ftruncate,?truncate,fallocate,fsync,fdatasync,?sync_file_range,"
    "?chmod,fchmod,fchmodat,copy_file_range,?sendfile"
)
KILLED = -signal.SIGKILL


def available() -> bool:
    """Return True if strace is installed and may attach to a process of this user."""
    if shutil.which("strace") is None:
        return False
    return run_traced(_do_nothing, (), ["-e", "trace=none"]) == 0


def run_traced(
    work: Callable[..., object],
    arguments: Sequence[object],
    options: Sequence[str],
    *,
    log: Path | None = None,
    timeout_s: float = 120,
) -> int:
    """Run ``work(*arguments)`` in a child under ``strace -f`` and return its exit code, `KILLED` after a SIGKILL.

    Args:
        work: A function that can be pickled; an exception in it gives exit code 1.
        arguments: Its arguments.
        options: Options of strace, such as ``["-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=3"]``.
        log: The file that strace writes; by default none.
        timeout_s: Seconds after which the child is killed and `TimeoutError` is raised.
    """
    preload()
    process = CONTEXT.Process(target=_stop_then_work, args=(work, tuple(arguments)))
    process.start()
    assert process.pid is not None
    _wait_until_stopped(process.pid)
    out = os.devnull if log is None else str(log)
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", out, *options, "-p", str(process.pid)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_until_traced(process.pid, tracer)
        os.kill(process.pid, signal.SIGCONT)
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"the traced child did not end within {timeout_s:g} s")
    finally:
        if process.is_alive():
            process.kill()
            process.join()
        tracer.terminate()
        tracer.communicate()
    return process.exitcode


def _do_nothing() -> None:
    """Do nothing."""


def _stop_then_work(work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    work(*arguments)


def _wait_until_stopped(pid: int) -> None:
    _wait_for(lambda: _status(pid, "State") in ("T", "t", "Z"), f"process {pid} to stop")


def _wait_until_traced(pid: int, tracer: subprocess.Popen[str]) -> None:
    def attached() -> bool:
        if tracer.poll() is not None:
            assert tracer.stderr is not None
            raise RuntimeError(f"strace ended immediately: {tracer.stderr.read().strip()}")
        return _status(pid, "TracerPid") not in ("0", "")

    _wait_for(attached, "strace to attach")


def _wait_for(condition: Callable[[], bool], event: str) -> None:
    until = time.monotonic() + 30
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited 30 s for {event}")
        time.sleep(0.001)


def _status(pid: int, field: str) -> str:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    match = re.search(rf"^{field}:\s*(\S+)", text, re.MULTILINE)
    return match[1] if match else ""
