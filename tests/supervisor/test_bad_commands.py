"""Commands that do not behave: they ignore signals, leave processes, flood or close their output, cannot be started."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.storage.log_reader import LogReader
from ckptstore.store.store import CheckpointStore
from ckptstore.supervisor.log_index import kept_logs
from ckptstore.system.process_tree import look_at
from crash.sample_stores import save
from mounts import mounted
from supervised import GRACE_S, STUBBORN, Ran, Start, command_line

linux = pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell of descendants")


def is_alive(pid: int) -> bool:
    process = look_at(pid)
    return process is not None and not process.is_dead


def text_of(path: Path) -> bytes:
    with LogReader(kept_logs(path)[-1].path) as reader:
        return b"".join(reader.read())


# --- signals --------------------------------------------------------------------------------------


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace_period(start: Start) -> None:
    running = start(STUBBORN, "--grace", 1)
    running.process.terminate()
    began = time.monotonic()
    code, err = running.end()
    assert (code, is_alive(running.child)) == (128 + signal.SIGKILL, False)
    assert 0.8 < time.monotonic() - began < 30
    assert f"has not ended within the grace period, and is killed: process {running.child}" in err


@linux
def test_a_stopped_command_obeys_a_signal(start: Start) -> None:
    running = start("import os, time; print('ready', os.getpid(), flush=True); time.sleep(60)")
    os.kill(running.child, signal.SIGSTOP)
    running.process.terminate()
    assert running.end()[0] == 75


# --- processes left behind ------------------------------------------------------------------------

LEAVING = """
import os, signal, subprocess, sys, time
from pathlib import Path
ignoring = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", ignoring], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
shell = ["sh", "-c", "sleep 60 > /dev/null 2>&1 & echo $!"]
grandchild = subprocess.run(shell, stdout=subprocess.PIPE).stdout
Path("left").write_text(f"{child.pid} {int(grandchild)}")
"""


@linux
@pytest.mark.parametrize("end", ["sys.exit(3)", "os.kill(os.getpid(), 9)"])
def test_processes_that_a_command_leaves_behind_are_ended(tmp_path: Path, end: str) -> None:
    options = ("--grace", GRACE_S, "--max-restarts", 0)
    ran = Ran(tmp_path, "store", *options, "--", sys.executable, "-c", LEAVING + end)
    left = [int(pid) for pid in (tmp_path / "left").read_text().split()]
    assert not any(map(is_alive, left))
    assert "has left processes behind, which are ended" in ran.err


@linux
def test_a_command_that_forks_away_is_waited_for_and_its_exit_code_taken(tmp_path: Path) -> None:
    """A shell that starts the training with `&`, or a training that makes itself a daemon."""
    script = (
        "import os, sys, time\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        "os.closerange(3, 100)\n"
        "time.sleep(0.5); print('trained', flush=True); os._exit(7)\n"
    )
    ran = Ran(tmp_path, "store", "--max-restarts", 0, "--", sys.executable, "-c", script)
    assert (ran.code, ran.out) == (7, "trained\n")
    assert "has left processes, which are waited for" in ran.err
    assert "the training should not go into the background" in ran.err


@linux
def test_a_signal_reaches_a_training_in_the_background(tmp_path: Path, start: Start) -> None:
    script = (
        "import os, time\nprint('ready', os.getpid(), flush=True)\nif os.fork(): os._exit(0)\ntime.sleep(60)"
    )
    running = start(script)
    assert running.process.stderr is not None
    assert "waited for" in running.process.stderr.readline()
    running.process.terminate()
    assert running.end()[0] == 75


@linux
@pytest.mark.parametrize("release", ["", "os.close(file)\n"], ids=["saves", "has saved"])
def test_a_process_that_saves_is_waited_for(tmp_path: Path, release: str) -> None:
    """It holds the run's lock, finishes what the killed training gave it, and takes a moment to end."""
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    saver = (
        "import fcntl, os, time\n"
        "file = os.open('store/locks/default.lock', os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        f"{release}print('up', flush=True)\n"
        "time.sleep(1)\n"
        "open('saved', 'w').close()\n"
    )
    script = (
        "import os, subprocess, sys\n"
        "saver = subprocess.Popen([sys.executable, '-c', sys.argv[1], 'ckptstore.background'],\n"
        "                         stdout=subprocess.PIPE, start_new_session=True)\n"
        "saver.stdout.readline()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    options = ("--max-restarts", 0, "--grace", 0)
    ran = Ran(tmp_path, "store", *options, "--", sys.executable, "-c", script, saver)
    assert (tmp_path / "saved").exists()
    assert "left processes behind" not in ran.err


@linux
def test_programs_that_were_there_before_it_are_left_alone(tmp_path: Path) -> None:
    """A script that starts a server, and then executes `ckptstore run`: the server is a child of this process."""
    inner = ("sh", "-c", "sleep 60 > /dev/null 2>&1 & echo $! > left; exit 3")
    command = shlex.join(command_line("store", "--max-restarts", 0, "--", *inner))
    script = f"sleep 60 > /dev/null 2>&1 & echo $!; exec {command}"
    process = subprocess.Popen(["sh", "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        assert process.wait(timeout=60) == 3
    assert not is_alive(int((tmp_path / "left").read_text()))
    assert is_alive(server)
    os.kill(server, signal.SIGKILL)


# --- output ----------------------------------------------------------------------------------------

FLOOD = """
import hashlib, os, sys
line = b"%09d some text of a training, such as a progress bar prints it again and again\\n"
digest = hashlib.sha256()
blocks = int(sys.argv[1])
for block in range(blocks):
    text = b"".join(line % (block * 13000 + number) for number in range(13000))
    digest.update(text)
    os.write(1, text)
open("digest", "w").write(digest.hexdigest())
sys.exit(3)
"""


def test_a_flood_of_output_is_kept_to_the_byte_in_little_room(tmp_path: Path) -> None:
    """64 MiB; it is shown on a pipe that somebody reads, and none of it is lost there either."""
    process = subprocess.Popen(
        command_line("store", "--max-restarts", 0, "--log-limit", 32, "--", sys.executable, "-c", FLOOD, 64),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    shown = hashlib.sha256()
    with process.stdout:
        while piece := process.stdout.read(1 << 20):
            shown.update(piece)
    assert process.wait(timeout=120) == 3
    expected = (tmp_path / "digest").read_text()
    kept = kept_logs(tmp_path / "store")[-1]
    assert hashlib.sha256(text_of(tmp_path / "store")).hexdigest() == expected
    assert shown.hexdigest() == expected
    assert kept.nbytes < 32 << 20


def test_logs_are_bounded_and_the_end_is_kept(tmp_path: Path) -> None:
    options = ("--max-restarts", 0, "--log-limit", 1, "--quiet")
    ran = Ran(tmp_path, "store", *options, "--", sys.executable, "-c", FLOOD, 8)
    assert (ran.code, ran.out) == (3, "")
    kept = kept_logs(tmp_path / "store")[-1]
    assert kept.nbytes <= 1 << 20
    assert text_of(tmp_path / "store").splitlines()[-1].startswith(b"%09d" % (8 * 13000 - 1))


def test_nobody_who_reads_blocks_no_command(tmp_path: Path) -> None:
    """Its reader neither reads nor closes: the command writes to the file, and ends."""
    script = "import os, time\nfor _ in range(64): os.write(1, bytes(8192))\nopen('done', 'w').close()"
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            command_line("store", "--", sys.executable, "-c", script), cwd=tmp_path, stdout=writer
        )
        assert process.wait(timeout=60) == 0
    finally:
        os.close(reader)
        os.close(writer)
    assert (tmp_path / "done").exists()


def test_a_command_that_closes_its_output_is_watched_on(tmp_path: Path) -> None:
    script = "import os, time\nos.close(1); os.close(2)\ntime.sleep(0.3)\nos._exit(4)"
    ran = Ran(tmp_path, "store", "--max-restarts", 0, "--", sys.executable, "-c", script)
    assert (ran.code, ran.out) == (4, "")


def test_errors_and_output_stand_in_one_log_in_their_order(tmp_path: Path) -> None:
    script = "import sys\nfor n in range(3): print(n); print('error', n, file=sys.stderr)\nsys.exit(1)"
    ran = Ran(tmp_path, "store", "--max-restarts", 0, "--", sys.executable, "-c", script)
    assert ran.out == "0\nerror 0\n1\nerror 1\n2\nerror 2\n"
    assert text_of(tmp_path / "store").decode() == ran.out


@pytest.mark.skipif(os.geteuid() == 0 and sys.platform != "linux", reason="root may write anywhere")
def test_a_log_folder_that_cannot_be_written_is_named_and_the_output_is_shown(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    (tmp_path / "store" / "logs").write_text("a file is in the way")
    ran = Ran(tmp_path, "store", "--", sys.executable, "-c", "print('trained')")
    assert (ran.code, ran.out) == (0, "trained\n")
    assert "no log of the output is kept: " in ran.err and "store/logs" in ran.err


# --- starts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_store", [True, False], ids=["store", "no store yet"])
def test_a_command_that_cannot_be_started_changes_nothing_on_disk(tmp_path: Path, with_store: bool) -> None:
    if with_store:
        with CheckpointStore(tmp_path / "store") as store:
            save(store, 5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ran = Ran(tmp_path, "store", "--", "no-such-command")
    assert ran.code == 127
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {".supervisor", ".command"} and set(before) <= set(after)
    assert with_store or not after


def test_a_command_that_vanishes_between_two_starts_is_a_stated_reason(tmp_path: Path) -> None:
    script = tmp_path / "train"
    script.write_text("#!/bin/sh\nrm train\nexit 75\n")
    script.chmod(0o755)
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    ran = Ran(tmp_path, "store", "--pause", 0, "--json", "--", "./train")
    assert (ran.code, ran.json["stopped"]) == (127, "cannot_start")
    with CheckpointStore(tmp_path / "store", read_only=True) as store:
        (event,) = store.events(kind="stopped")
    assert event.detail is not None and event.detail["reason"] == "cannot_start"


def test_a_store_that_is_removed_is_a_stated_reason_and_none_is_begun_in_its_place(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    script = "open('starts', 'a').write('x'); import shutil; shutil.rmtree('store'); import sys; sys.exit(3)"
    ran = Ran(tmp_path, "store", "--json", "--pause", 0, "--", sys.executable, "-c", script)
    assert (ran.code, ran.starts) == (3, 1), ran.err
    removed = f"{tmp_path / 'store' / 'locks'} was removed"
    assert (ran.json["stopped"], ran.json["message"]) == ("cannot_start", removed)
    assert f"not restarted: {removed}" in ran.err
    assert os.listdir(tmp_path) == ["starts"], "no log, lock or folder is left"


def test_every_end_without_a_fit_is_recorded_in_the_store(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    script = "print('first words'); print('last words'); raise SystemExit(3)"
    Ran(tmp_path, "store", "--pause", 0, "--", sys.executable, "-c", script)
    with CheckpointStore(tmp_path / "store", read_only=True) as store:
        ends, (stop,) = store.events(kind="start_ended"), store.events(kind="stopped")
    assert len(ends) == 2
    for end in ends:
        assert end.detail is not None
        assert (end.detail["exit_code"], end.detail["signal"]) == (3, None)
        assert end.detail["output"] == ["first words", "last words"]
        assert Path(end.detail["log"]).read_text() == "first words\nlast words\n"
    assert stop.detail is not None and stop.detail["reason"] == "same_exception"


def test_logs_of_before_the_store_move_into_it(tmp_path: Path) -> None:
    script = (
        "print('made it', flush=True)\n"
        "from crash.sample_stores import save\n"
        "from ckptstore.store.store import CheckpointStore\n"
        "with CheckpointStore('store') as store: save(store, 5)\n"
    )
    ran = Ran(tmp_path, "store", "--json", "--", sys.executable, "-c", script)
    assert Path(ran.json["log"]).is_relative_to(tmp_path / "store" / "logs"), ran.err
    assert not list(tmp_path.glob(".ckptstore*"))
    assert text_of(tmp_path / "store") == b"made it\n"


# --- the disk -------------------------------------------------------------------------------------------


def test_a_full_disk_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    script = "import errno, os; open('starts', 'a').write('x'); raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))"
    ran = Ran(tmp_path, "store", "--disk-full-for", 1, "--json", "--", sys.executable, "-c", script)
    assert (ran.code, ran.json["stopped"], ran.json["ends"]) == (1, "disk_full", {"disk_full": ran.starts})
    assert "when there is room on the disk again" in ran.err
    assert ran.json["message"] == "the disk has been full for 1 s"


def test_a_command_prints_on_while_the_disk_is_full(tmp_path: Path) -> None:
    """Blocks are reserved behind the end of its log, so that print() does not end the training."""
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=4m", "tmpfs") as folder:
        script = (
            "import errno, time\n"
            "print('begin', flush=True); time.sleep(2)\n"
            "file = open('ballast', 'wb', buffering=0)\n"
            "try:\n"
            "    while True: file.write(bytes(4096))\n"
            "except OSError as error: assert error.errno == errno.ENOSPC\n"
            "for n in range(1000): print('still here', n, flush=True)\n"
        )
        ran = Ran(folder, "store", "--", sys.executable, "-c", script)
        assert (ran.code, ran.out.splitlines()[-1]) == (0, "still here 999"), ran.out


def test_clocks_that_jump_change_no_decision(tmp_path: Path) -> None:
    """Files of the log from the future, and an earlier start that seems to come later."""
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    starts = tmp_path / "store" / "logs" / ".starts"
    starts.mkdir(parents=True)
    future = starts / "29991231T000000Z-0000000000000000.log"
    future.write_text("from a clock that was wrong\n")
    os.utime(future, (2**34, 2**34))
    ran = Ran(tmp_path, "store", "--json", "--pause", 0, "--", sys.executable, "-c", "raise SystemExit(3)")
    assert (ran.code, ran.json["restarts"]) == (3, 1)
    assert future.read_text() == "from a clock that was wrong\n"


@linux
@pytest.mark.parametrize(
    ("end", "reason", "said"),
    [
        ("os._exit(0)", "unknown", "the process ended in the middle of its fit"),
        (
            "store.recorder.failed(KeyError('x')); sys.exit(0)",
            "exception",
            "its fit was ended by KeyError: 'x'",
        ),
    ],
)
def test_exit_code_0_does_not_make_a_fit_finished(tmp_path: Path, end: str, reason: str, said: str) -> None:
    script = (
        "import os, sys\n"
        "from ckptstore.store.store import CheckpointStore\n"
        "from crash.sample_stores import save\n"
        "store = CheckpointStore('store')\n"
        "store.recorder.begin('default')\n"
        "store.heartbeat('default').beat(0, 3, 4)\n"
        f"save(store, 1)\n{end}\n"
    )
    ran = Ran(tmp_path, "store", "--alert-command", "cat >> alerts", "--", sys.executable, "-c", script)
    line = f"the command ended with exit code 0, but the training is not finished: {said}"
    assert (ran.code, ran.err) == (0, f"ckptstore run: {line}\n")
    assert json.loads((tmp_path / "alerts").read_text())["kind"] == "stopped"
    with CheckpointStore(tmp_path / "store", read_only=True) as store:
        (attempt,), (run,) = store.attempts(), store.runs()
    assert (attempt.reason, run.state) == (reason, "failed" if reason == "exception" else "interrupted")


@pytest.fixture
def few_processes() -> Iterator[Path]:
    """Return a control group of version 1 that limits the number of processes."""
    group = Path(f"/sys/fs/cgroup/pids/ckptstore-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("needs permission to make a control group")
    yield group
    group.rmdir()


def test_a_machine_without_room_for_a_process_is_waited_for(tmp_path: Path, few_processes: Path) -> None:
    limit = few_processes / "pids.max"
    step = f'echo x >> starts; [ "$(wc -l < starts)" = 2 ] || {{ echo 1 > {limit}; kill -9 $$; }}'
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 1)
    join = f'echo $$ > {few_processes}/cgroup.procs && exec "$@"'
    running = subprocess.Popen(
        ["sh", "-c", join, "sh", *command_line("store", "--pause", 0, "--", "sh", "-c", step)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stderr is not None
        for line in running.stderr:
            if "the command cannot be started now, and is tried again" in line:
                limit.write_text("max")
                break
            assert "not restarted" not in line
        assert running.wait(60) == 0
        assert (tmp_path / "starts").read_text() == "x\nx\n"
    finally:
        running.kill()
        running.communicate()


def test_no_secret_is_in_the_store_but_for_what_the_command_prints(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 1)
    step = (
        "import sys; print('to https://h/x?token=hush'); sys.exit('RuntimeError: DB_PASSWORD=hush is wrong')"
    )
    ran = Ran(tmp_path, "store", "--max-restarts", 0, "--", sys.executable, "-c", step, "--api-key", "hush")
    assert ran.code == 1
    found = [
        path.relative_to(tmp_path / "store").parts[0]
        for path in (tmp_path / "store").rglob("*")
        if path.is_file() and path.suffix != ".sqlite" and b"hush" in path.read_bytes()
    ]
    assert found == ["logs"]
    with CheckpointStore(tmp_path / "store", read_only=True) as store:
        recorded = str([event.detail for event in store.events()])
    assert "DB_PASSWORD=***" in recorded and "hush" not in recorded
