"""Supervisors that are killed, started again, or started twice: one command runs, and one supervisor watches it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save
from supervised import STOPPABLE, Ran, Running, Start, command_line

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a command is found again by /proc")

# Counts its starts, tells its process id, and ends when a file appears: with a save and what stands in the file.
UNTIL_FILE = """
import os, sys, time
from pathlib import Path
with open("starts", "a") as file:
    file.write("x")
print("ready", os.getpid(), flush=True)
while not Path("end").exists():
    time.sleep(0.02)
text = Path("end").read_text()
print("seen", text, flush=True)
if len(Path("starts").read_text()) > 1:
    sys.exit(0)
if text == "kill":
    os.kill(os.getpid(), 9)
sys.exit(int(text))
"""


def second(start: Start, script: str) -> Running:
    """Start a supervisor that is to take a running command over, and wait until it has reported so."""
    running = start(script, wait=False)
    assert running.process.stderr is not None
    line = running.process.stderr.readline()
    assert "takes over a command that still runs" in line, line
    return running


@pytest.mark.parametrize("with_store", [True, False], ids=["store", "no store yet"])
@pytest.mark.parametrize(("text", "code", "starts"), [("0", 0, 1), ("kill", 0, 2), ("75", 0, 2)])
def test_a_killed_supervisor_leaves_the_command_to_the_next_one(
    tmp_path: Path, start: Start, text: str, code: int, starts: int, with_store: bool
) -> None:
    if with_store:
        with CheckpointStore(tmp_path / "store") as store:
            save(store, 5)
    first = start(UNTIL_FILE)
    first.process.kill()
    first.process.wait()
    os.kill(first.child, 0)  # it still runs
    next_one = second(start, UNTIL_FILE)
    (tmp_path / "end").write_text(text)
    out, err = next_one.process.communicate(timeout=60)
    assert next_one.process.returncode == code, err
    assert (tmp_path / "starts").read_text() == "x" * starts
    assert out.startswith(f"seen {text}\n"), "what it wrote since, in the log that the first one began"


def test_nothing_is_left_of_a_supervisor_that_was_killed_before_there_was_a_store(
    tmp_path: Path, start: Start
) -> None:
    first = start(UNTIL_FILE)
    first.process.kill()
    first.process.wait()
    assert list(tmp_path.glob(".ckptstore*/*.supervisor"))
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    next_one = second(start, UNTIL_FILE)
    (tmp_path / "end").write_text("0")
    assert next_one.end()[0] == 0
    assert not list(tmp_path.glob(".ckptstore*"))


def test_it_is_asked_to_stop_by_the_supervisor_that_took_it_over(tmp_path: Path, start: Start) -> None:
    first = start(STOPPABLE)
    first.process.kill()
    first.process.wait()
    next_one = second(start, STOPPABLE)
    next_one.process.terminate()
    _, err = next_one.process.communicate(timeout=60)
    assert (tmp_path / "saved").read_text() == "SIGTERM"
    assert (next_one.process.returncode, err.splitlines()[-1]) == (
        75, "ckptstore run: the command was interrupted (exit code 75); not restarted: a signal asked to stop",
    )  # fmt: skip


@pytest.mark.parametrize("with_store", [True, False], ids=["store", "no store yet"])
def test_a_second_supervisor_is_refused_and_starts_nothing(
    tmp_path: Path, start: Start, with_store: bool
) -> None:
    if with_store:
        with CheckpointStore(tmp_path / "store") as store:
            save(store, 5)
    first = start(UNTIL_FILE)
    refused = Ran(tmp_path, "store", "--", sys.executable, "-c", UNTIL_FILE)
    assert (refused.code, refused.starts) == (4, 1)
    assert f"is supervised by process {first.process.pid} on " in refused.err
    assert "ckptstore logs -f" in refused.err
    (tmp_path / "end").write_text("0")
    assert first.end()[0] == 0
    assert not list(tmp_path.glob(".ckptstore*/*.supervisor")), "nothing is left"


def test_a_store_that_appears_meanwhile_admits_no_second_supervisor(tmp_path: Path, start: Start) -> None:
    start(UNTIL_FILE)
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    refused = Ran(tmp_path, "store", "--", sys.executable, "-c", UNTIL_FILE)
    assert (refused.code, refused.starts) == (4, 1)


def test_supervisors_of_two_runs_do_not_disturb_each_other(tmp_path: Path, start: Start) -> None:
    first, other = start(UNTIL_FILE, "--run", "a"), start(UNTIL_FILE, "--run", "b")
    (tmp_path / "end").write_text("0")
    assert (first.end()[0], other.end()[0]) == (0, 0)


def test_a_command_that_ended_while_nobody_watched_is_started_again(tmp_path: Path, start: Start) -> None:
    first = start(UNTIL_FILE)
    first.process.kill()
    first.process.wait()
    os.kill(first.child, signal.SIGKILL)
    while Path(f"/proc/{first.child}/exe").exists():
        time.sleep(0.01)
    (tmp_path / "end").write_text("0")
    ran = Ran(tmp_path, "store", "--", sys.executable, "-c", UNTIL_FILE)
    assert (ran.code, ran.starts) == (0, 2)
    assert "takes over" not in ran.err


# A supervisor that is killed right after one of its starts, before it can record the process.
KILLED_AFTER_START = """
import os, runpy, sys
from ckptstore.supervisor import children
start, left = children.start, [int(sys.argv.pop(1))]
def last(*arguments, **settings):
    started = start(*arguments, **settings)
    left[0] -= 1
    return started if left[0] else os.kill(os.getpid(), 9)
children.start = last
runpy.run_module("ckptstore", run_name="__main__")
"""
# Fails at once before the start with the given number, and then waits for a file; tells of a signal to stop.
FROM_START = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *ignored: Path("terminated").touch())
with open("starts", "a") as file:
    file.write("x")
if len(Path("starts").read_text()) < int(sys.argv[1]):
    sys.exit(3)
Path("waits").touch()
while not Path("end").exists():
    time.sleep(0.02)
print("seen", flush=True)
"""


@pytest.mark.parametrize("starts", [1, 2])
def test_a_supervisor_killed_before_it_has_recorded_the_process_leaves_it_to_the_next_one(
    tmp_path: Path, start: Start, starts: int
) -> None:
    run = command_line("store", "--pause", 0, "--", sys.executable, "-c", FROM_START, starts)[3:]
    killed = [sys.executable, "-c", KILLED_AFTER_START, str(starts), *run]
    assert subprocess.run(killed, cwd=tmp_path, check=False).returncode == -signal.SIGKILL
    while not (tmp_path / "waits").exists():
        time.sleep(0.01)
    next_one = start(FROM_START, wait=False, arguments=[str(starts)])
    assert next_one.process.stderr is not None
    assert "takes over a command that still runs" in next_one.process.stderr.readline()
    (tmp_path / "end").touch()
    out, err = next_one.process.communicate(timeout=60)
    assert (next_one.process.returncode, out) == (0, "seen\n"), err
    assert len((tmp_path / "starts").read_text()) == starts
    assert not (tmp_path / "terminated").exists()


def test_what_is_left_of_a_command_that_ended_unwatched_is_ended_before_the_next_start(
    tmp_path: Path, start: Start
) -> None:
    """Supervisor and command were killed; a worker of the command lives on, and holds the record's lock."""
    worker = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    script = (
        "import os, subprocess, sys, time\n"
        "from pathlib import Path\n"
        "if Path('worker').exists(): sys.exit(0)\n"
        "worker = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE, close_fds=False,\n"
        "                          start_new_session=True)\n"
        "worker.stdout.readline()\n"
        "Path('worker').write_text(str(worker.pid))\n"
        "print('ready', os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    first = start(script, "--grace", 0.5, arguments=[worker])
    first.process.kill()
    first.process.wait()
    os.kill(first.child, signal.SIGKILL)
    left = int((tmp_path / "worker").read_text())
    options = ("--grace", 0.5, "--pause", 0)
    ran = Ran(tmp_path, "store", *options, "--", sys.executable, "-c", script, worker)
    assert ran.code == 0, ran.err
    assert f"has ended, but not all of it: {left}" in ran.err
    assert not Path(f"/proc/{left}/exe").exists()


def test_a_record_of_a_process_id_that_is_another_process_now_is_not_believed(tmp_path: Path) -> None:
    """The lock of the record decides: a process that has the id by chance does not hold it."""
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    record = {"pid": os.getpid(), "started_ticks": 1, "boot_id": None, "host": "", "command": [], "log": ""}
    (tmp_path / "store" / "locks" / ".command").write_text(json.dumps({**record, "inode": 0, "token": ""}))
    ran = Ran(tmp_path, "store", "--", sys.executable, "-c", "print('started')")
    assert (ran.code, ran.out) == (0, "started\n")


def test_a_damaged_record_is_no_obstacle(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    for content in (b"", b"\0\xff{", b'{"pid": 1}', b"[1, 2]"):
        (tmp_path / "store" / "locks" / ".command").write_bytes(content)
        ran = Ran(tmp_path, "store", "--", sys.executable, "-c", "print('started')")
        assert (ran.code, ran.out) == (0, "started\n"), content


def test_as_process_1_it_takes_signals_and_reaps_orphans(tmp_path: Path) -> None:
    """In a container it is process 1: signals have no default actions there, and orphans become its children."""
    unshare = shutil.which("unshare")
    namespace = [unshare or "", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if unshare is None or subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no PID namespaces here")
    script = (
        "import os, subprocess, sys, time\n"
        "for _ in range(3):\n"
        "    subprocess.run(['sh', '-c', 'sleep 0.1 & exit 0'])\n"
        "time.sleep(0.5)\n"
        "import pathlib\n"
        "states = [p.joinpath('stat').read_text().rpartition(')')[2].split()[0]\n"
        "          for p in pathlib.Path('/proc').iterdir() if p.name.isdecimal()]\n"
        "print('parent', os.getppid(), 'zombies', states.count('Z'), flush=True)\n" + STOPPABLE
    )
    process = subprocess.Popen(
        [*namespace, *command_line("store", "--", sys.executable, "-c", script)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    time.sleep(0.2)
    first = process.stdout.readline()
    assert process.stdout.readline().startswith("ready")
    inner = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill(inner, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert first == "parent 1 zombies 0\n", err
    assert (tmp_path / "saved").read_text() == "SIGTERM"
    assert process.returncode == 75, err
