"""Forks worker processes from a server that has imported what they need, instead of starting each as a program.

From `main` on, the worker runs its own code; descriptors, session and environment are those that the program would get.
How the program is started, and how it ends, is tested in tests/background, which starts it.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

_HIGH = 500  # above the number of every descriptor that a worker inherits
_MAX_DESCRIPTORS = 64


class Server:
    """The process that workers are forked from; it ends with the last process that holds a connection to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._connection = ours

    def close(self) -> None:
        """End the server."""
        self._connection.close()
        self._process.wait()

    def start(
        self, command: Sequence[str], *, stderr: int, pass_fds: Sequence[int], env: dict[str, str], **_: Any
    ) -> ForkedWorker:
        """Start a worker, as `subprocess.Popen` would start its program."""
        reader, writer = os.pipe()
        try:
            request = {"arguments": command[-1], "descriptors": list(pass_fds), "environment": env}
            socket.send_fds(self._connection, [json.dumps(request).encode()], [writer, stderr, *pass_fds])
        finally:
            os.close(writer)
        return ForkedWorker(reader)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Start the workers of this process, and of its forks, from the server within the block."""
        stand_in = SimpleNamespace(Popen=self.start, DEVNULL=subprocess.DEVNULL)
        with mock.patch("ckptstore.background.process.subprocess", stand_in):
            yield


class ForkedWorker:
    """The trainer's handle of a worker: not a child, but a pipe that delivers its pid, and closes when it is gone."""

    returncode: int | None = None

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self.pid = int.from_bytes(os.read(pipe, 8), "big")

    def poll(self) -> int | None:
        """Return 0 if it has ended, and else None; the true exit code is unknown."""
        if self.returncode is None and select.select([self._pipe], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Wait until it has ended."""
        if self.returncode is None:
            assert os.read(self._pipe, 1) == b""
            self.returncode = 0
        return self.returncode

    def __del__(self) -> None:
        os.close(self._pipe)


# --- in the server -------------------------------------------------------------------------------


def _serve(connection: socket.socket) -> None:
    import ckptstore.background.process_loop  # noqa: F401
    from crash import precompile

    precompile.warm_up()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    while True:
        request, received, *_ = socket.recv_fds(connection, 1 << 20, _MAX_DESCRIPTORS)
        if not request:
            return
        if os.fork() == 0:
            connection.close()
            _work(json.loads(request), received)
        for descriptor in received:
            os.close(descriptor)


def _work(request: dict[str, Any], received: list[int]) -> None:
    from ckptstore.background.__main__ import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH) for descriptor in received]
    for descriptor in received:
        os.close(descriptor)
    writer, stderr, *passed = high
    for descriptor, number in zip((stderr, *passed), (2, *request["descriptors"]), strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["", request["arguments"]]
    os.write(writer, os.getpid().to_bytes(8, "big"))
    try:
        main()
    finally:
        os._exit(1)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
