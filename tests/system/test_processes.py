"""Facts about processes, of real ones: alive, stopped, traced, gone, and a pid that another process has now."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ckptstore.system.processes import boot_id, clock_s, process_state, start_ticks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these facts come from Linux' /proc")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process that waits until its standard input is closed."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "import sys; print('up', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process_is_alive_then_stopped_then_alive_then_gone(child: subprocess.Popen[str]) -> None:
    started = start_ticks(child.pid)
    assert started is not None
    assert process_state(child.pid, started) == "alive"
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert process_state(child.pid, started) == "stopped"
    child.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, child.pid, os.WCONTINUED)
    assert process_state(child.pid, started) == "alive"
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_state(child.pid, started) == "gone"  # a zombie
    child.wait()
    assert process_state(child.pid, started) == "gone"
    assert start_ticks(child.pid) is None


def test_a_later_process_with_the_same_pid_is_another(child: subprocess.Popen[str]) -> None:
    started = start_ticks(child.pid)
    assert started is not None
    assert process_state(child.pid, started - 1) == "gone"
    assert process_state(child.pid, None) == "alive"


def test_a_traced_process_is_told_from_a_stopped_one(child: subprocess.Popen[str]) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    with subprocess.Popen([strace, "-p", str(child.pid)], stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        if "attached" not in line:
            pytest.skip(f"this process may not trace: {line}")
        assert process_state(child.pid, start_ticks(child.pid)) == "traced"
        tracer.send_signal(signal.SIGINT)


def test_the_clock_and_the_boot_are_this_machines() -> None:
    before = clock_s()
    ticks = start_ticks()
    assert ticks is not None
    assert 0 < ticks / os.sysconf("SC_CLK_TCK") <= before <= clock_s()
    boot = boot_id()
    assert boot is not None
    assert len(boot) == 36
