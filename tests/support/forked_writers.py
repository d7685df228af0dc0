"""Forks the processes that save from one that has imported what they need, instead of starting each as a program.

The work is the program's own from `main` on; the descriptors, the session and the environment are what it would get.
How the program is started, and what becomes of it, is what `test_background_*` are about: they start it.
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
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

_HIGH = 500  # above every descriptor that a writer is to find under its own number
_MOST = 64


class Server:
    """The process that writers are forked from; it ends with the last process that could ask it for one."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            tools = str(Path(__file__).parent.parent.parent / "tools")
            paths = [tools, *(entry for entry in sys.path if entry)]
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        self._connection = ours

    def close(self) -> None:
        """Let it end."""
        self._connection.close()
        self._process.wait()

    def start(
        self, command: Sequence[str], *, stderr: int, pass_fds: Sequence[int], env: dict[str, str], **_: Any
    ) -> Writer:
        """Do as `subprocess.Popen` would with the writer's program."""
        listens, speaks = os.pipe()
        try:
            facts = {"arguments": command[-1], "descriptors": list(pass_fds), "environment": env}
            socket.send_fds(self._connection, [json.dumps(facts).encode()], [speaks, stderr, *pass_fds])
        finally:
            os.close(speaks)
        return Writer(listens)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Start writers of this process, and of its forks, in this way."""
        ours = SimpleNamespace(Popen=self.start, DEVNULL=subprocess.DEVNULL)
        with mock.patch("ckptstore.background.process.subprocess", ours):
            yield


class Writer:
    """A writer as its trainer sees it: no child, but a pipe that says its number, and closes when it is gone."""

    returncode: int | None = None

    def __init__(self, listens: int) -> None:
        self._listens = listens
        self.pid = int.from_bytes(os.read(listens, 8), "big")

    def poll(self) -> int | None:
        """Return 0 where it has ended; how, it cannot tell."""
        if self.returncode is None and select.select([self._listens], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Return when it has ended."""
        if self.returncode is None:
            assert os.read(self._listens, 1) == b""
            self.returncode = 0
        return self.returncode

    def __del__(self) -> None:
        os.close(self._listens)


# --- in the server -------------------------------------------------------------------------------


def _serve(connection: socket.socket) -> None:
    import ckptstore.background.process_loop  # noqa: F401
    from crash import precompile

    precompile.warm_up()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        asked, found, *_ = socket.recv_fds(connection, 1 << 20, _MOST)
        if not asked:
            return
        if os.fork() == 0:
            connection.close()
            _write(json.loads(asked), found)
        for descriptor in found:
            os.close(descriptor)


def _write(facts: dict[str, Any], found: list[int]) -> None:
    from ckptstore.background.__main__ import main

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _HIGH) for one in found]
    for one in found:
        os.close(one)
    speaks, stderr, *passed = high
    for one, number in zip((stderr, *passed), (2, *facts["descriptors"]), strict=True):
        os.dup2(one, number)
        os.close(one)
    os.setsid()
    os.environ.clear()
    os.environ.update(facts["environment"])
    sys.argv = ["", facts["arguments"]]
    os.write(speaks, os.getpid().to_bytes(8, "big"))
    try:
        main()
    finally:
        os._exit(1)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
