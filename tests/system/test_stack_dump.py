"""Stacks on demand, in real processes that hang, and in programs that use the same signals themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="needs real-time signals")
FIRST = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else 0

# Begins a heartbeat as a supervised training does, and prints the signal that it names.
PRELUDE = """
import os, re, signal, sys, threading
from pathlib import Path
from ckptstore.storage.heartbeat import Heartbeat
from ckptstore.storage.heartbeat_file import read_heartbeat
from ckptstore.storage.layout import Layout

def begin():
    heartbeat = Heartbeat.begin(Layout(Path(sys.argv[1])), "digits")
    print(read_heartbeat(Path(sys.argv[1], "heartbeats", "digits")).dump, flush=True)
    return heartbeat
"""


def started(tmp_path: Path, script: str, **environment: str) -> subprocess.Popen[str]:
    store = tmp_path / "store"
    store.mkdir(exist_ok=True)
    (store / "manifest.sqlite").touch()
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(store)],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ask_until(process: subprocess.Popen[str], number: int, log: Path, text: str) -> str:
    """Send a signal until the answer has a text: the process may just have come as far as that."""
    for _ in range(100):
        process.send_signal(number)
        time.sleep(0.1)
        if text in (content := log.read_text(encoding="utf-8")):
            return content
    pytest.fail(f"{text!r} is not in {content!r}")


def test_a_process_that_holds_the_interpreter_writes_the_stacks_of_all_threads(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n", encoding="utf-8")
    script = """
    def waits_for_ever():
        threading.Event().wait()
    threading.Thread(target=waits_for_ever, daemon=True).start()
    heartbeat = begin()
    def hangs():
        re.match("(a+)+b", "a" * 60)  # in C, for hours, without letting go of the interpreter
    hangs()
    """
    with started(tmp_path, script, CKPTSTORE_SUPERVISOR="t", CKPTSTORE_LOG=str(log)) as process:
        try:
            assert process.stdout is not None
            number = int(process.stdout.readline())
            assert number == FIRST
            for _ in range(2):
                content = ask_until(process, number, log, "hangs")
                log.write_text("before\n", encoding="utf-8")
            assert content.startswith("before\n")
            assert "waits_for_ever" in content
            assert process.poll() is None
        finally:
            process.kill()


def test_a_program_that_uses_the_signals_itself_is_not_disturbed(tmp_path: Path) -> None:
    script = """
    def own(number, frame):
        print("own", number, flush=True)
    signal.signal(int(os.environ["FIRST"]), own)
    heartbeat = begin()  # takes another one
    signal.raise_signal(int(os.environ["FIRST"]))
    signal.signal(int(os.environ["FIRST"]) + 1, own)  # takes that one away
    signal.raise_signal(int(os.environ["FIRST"]) + 1)
    heartbeat.end()
    signal.raise_signal(int(os.environ["FIRST"]) + 1)
    begin().end()
    signal.raise_signal(int(os.environ["FIRST"]) + 2)  # nobody's any more: ends the process
    """
    with started(tmp_path, script, CKPTSTORE_SUPERVISOR="t", FIRST=str(int(FIRST))) as process:
        output, errors = process.communicate(timeout=60)
    words = [f"{FIRST + 1}", f"own {FIRST}", f"own {FIRST + 1}", f"own {FIRST + 1}", f"{FIRST + 2}"]
    assert output.splitlines() == words, errors
    assert process.returncode == -(FIRST + 2)
    assert "Thread" not in errors


@pytest.mark.parametrize("environment", [{}, {"CKPTSTORE_LOG": "/nowhere/log"}])
def test_without_a_supervisor_or_its_log_no_signal_is_taken(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    script = """
    begin()
    print(*[line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigCgt")])
    """
    with started(tmp_path, script, **environment) as process:
        output, errors = process.communicate(timeout=60)
    named, caught = output.splitlines()
    assert named == "None", errors
    if sys.platform == "linux":
        assert not int(caught.split()[1], 16) >> (FIRST - 1) & 1
