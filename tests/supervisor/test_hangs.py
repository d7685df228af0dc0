"""Trainings that hang, and those that only seem to: what is seen, what goes to the log, what is recorded."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ckptstore.records import Attempt, Beat
from ckptstore.store.store import CheckpointStore
from ckptstore.supervisor.hangs import Hang, HangWatch, Paused
from crash.sample_stores import save
from supervised import Ran, Start

BEAT = Beat(
    run="digits", attempt=1, pid=7, started_ticks=3, host="", boot_id=None, at_s=9.0, written_at="",
    phase="training", phase_since_s=5.0, slowest_s={"batch": 60.0}, step=5,
)  # fmt: skip


# --- the judgement --------------------------------------------------------------------------------


class Looks:
    """A watch whose looker has a clock of its own."""

    def __init__(self, hang_after_s: float | None = None) -> None:
        self.watch = HangWatch(hang_after_s)
        self.now_s = 0.0

    def for_s(self, seconds: float, beat: Beat | None = BEAT, state: Any = "alive") -> list[Hang | Paused]:
        """Look regularly for some time, and return what was seen."""
        found = []
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += self.watch.look_every_s
            if (seen := self.watch.look(beat, state, self.now_s)) is not None:
                found.append(seen)
        return found


def phase(name: Any, **slowest_s: float) -> Beat:
    return dataclasses.replace(BEAT, phase=name, slowest_s=slowest_s)


@pytest.mark.parametrize(
    ("beat", "limit_s"),
    [
        (phase("training"), 1800),
        (phase("training", batch=1.0), 600),
        (phase("training", batch=60.0), 1200),
        (phase("training", validation=600.0), 1800),
        (phase("validating", validation=60.0), 1200),
        (phase("saving", save=100.0), 2000),
        (phase("paused", epoch_gap=31.0), 620),
        (phase("starting"), 1800),
        (phase("starting", start=300.0), 6000),
    ],
)
def test_the_limit_is_learnt_for_each_phase(beat: Beat, limit_s: float) -> None:
    looks = Looks()
    assert looks.for_s(limit_s, beat) == []
    (hang, *_) = looks.for_s(20, beat)
    assert isinstance(hang, Hang) and hang.limit_s == limit_s and hang.silent_s >= limit_s


def test_every_sign_of_life_begins_the_count_again() -> None:
    looks = Looks()
    for step in range(20):
        assert looks.for_s(590, dataclasses.replace(BEAT, step=step, slowest_s={"batch": 1.0})) == []


def test_a_given_limit_counts_instead_and_off_is_never() -> None:
    looks = Looks(30.0)
    assert looks.for_s(30) == []
    assert isinstance(looks.for_s(3)[0], Hang)
    assert Looks(30.0).for_s(1800, phase("starting")) == [], "loading and compiling take longer than a batch"
    assert Looks(0.0).for_s(100_000) == []


@pytest.mark.parametrize("beat", [None, phase("ended")])
def test_where_nothing_is_known_nothing_hangs(beat: Beat | None) -> None:
    assert Looks(30.0).for_s(10_000, beat) == []


@pytest.mark.parametrize("state", ["stopped", "traced"])
def test_one_that_is_kept_from_running_is_told_once_and_counts_no_time(state: Any) -> None:
    looks, beat = Looks(), phase("training", batch=1.0)
    assert looks.for_s(100, beat) == []
    assert looks.for_s(10_000, beat, state) == [Paused(beat=beat, by=state)]
    assert looks.for_s(590, beat) == []
    assert isinstance(looks.for_s(30, beat)[0], Hang)


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """The machine was suspended, or the supervisor stopped together with the training."""
    looks = Looks()
    looks.for_s(100, phase("training"))
    for _ in range(10):
        looks.now_s += 100_000
        assert looks.for_s(10, phase("training")) == []


# --- real processes -------------------------------------------------------------------------------

# A training without Keras: a heartbeat, an attempt, and what the first start does after three batches.
TRAINING = """
import faulthandler, os, signal, socket, sys, threading, time
from datetime import UTC, datetime
from pathlib import Path
from ckptstore.records import NewAttempt
from ckptstore.storage.heartbeat import Heartbeat
from ckptstore.storage.layout import Layout
from ckptstore.commit.open import open_for_writing

is_first = not Path("starts").exists()
with open("starts", "a") as file:
    file.write("x")
layout = Layout(Path("store").resolve())
manifest = open_for_writing(layout, create=False)
number = manifest.attempts.begin(NewAttempt(
    run="digits", started_at=datetime.now(UTC), host=socket.gethostname(), pid=os.getpid(), supervised=True,
    detail={"start": os.environ["CKPTSTORE_SUPERVISOR"]},
))
heartbeat = Heartbeat.begin(layout, "digits", number)
faulthandler.register(signal.SIGRTMIN + 7, file=sys.stderr, all_threads=True)
heartbeat.dump = int(signal.SIGRTMIN + 7)
for batch in range(3):
    heartbeat.beat(0, batch, batch + 1)
if not is_first:
    manifest.attempts.end("digits", number, reason="finished")
    heartbeat.end()
    sys.exit(0)
print("ready", os.getpid(), flush=True)
"""
BLOCKED = """
signal.signal(signal.SIGTERM, lambda *args: print("asked to stop", flush=True))
def wait_for_ever_here():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
wait_for_ever_here()
"""
DEADLOCK = """
locks = threading.Lock(), threading.Lock()
def take_both(first, second):
    with first:
        time.sleep(0.2)
        with second:
            pass
threads = [threading.Thread(target=take_both, args=pair, name=name)
           for pair, name in ((locks, "loader one"), (locks[::-1], "loader two"))]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
BEATING = """
step = 3
while not Path("end").exists():
    step += 1
    heartbeat.beat(0, step, step)
    time.sleep(0.05)
manifest.attempts.end("digits", number, reason="finished")
heartbeat.end()
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5, run="digits")
    return tmp_path / "store"


def attempts(store: Path) -> list[Attempt]:
    with CheckpointStore(store, read_only=True) as reader:
        return reader.attempts()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a lock that tells of a living training")
@pytest.mark.parametrize(
    ("script", "signal_name", "frames"),
    [(BLOCKED, "SIGKILL", ["wait_for_ever_here"]), (DEADLOCK, "SIGTERM", ["take_both", "join"])],
    ids=["main thread blocked", "deadlock of threads"],
)
def test_a_training_that_hangs_is_ended_and_started_again(
    tmp_path: Path, store: Path, script: str, signal_name: str, frames: list[str]
) -> None:
    options = ("--hang-after", 2, "--grace", 1, "--pause", 0, "--json")
    ran = Ran(tmp_path, "store", *options, "--", sys.executable, "-c", TRAINING + script)
    assert (ran.code, ran.starts, ran.json["ends"]) == (0, 2, {"hang": 1, "finished": 1}), ran.err
    hung, finished = attempts(store)
    assert (hung.reason, hung.signal, finished.reason) == ("hang", signal_name, "finished")
    detail = hung.detail
    assert (detail["phase"], detail["limit_s"], detail["epoch"]) == ("training", 2.0, 0)
    assert detail["for_s"] >= 2 and {"faulthandler", "kernel"} <= set(detail["dump"])
    assert "the training hangs: no sign of life for" in ran.err and "(it hung)" in ran.err
    text = sorted((store / "logs").rglob("*.log"))[0].read_text()
    for expected in (*frames, "Current thread", "Threads of process", "where its threads stand"):
        assert expected in text, text
    assert ("asked to stop" in text) == (script is BLOCKED)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell of stopped processes")
def test_a_stopped_training_is_told_and_left_alone(tmp_path: Path, store: Path, start: Start) -> None:
    running = start(TRAINING + BEATING, "--hang-after", 2)
    os.kill(running.child, signal.SIGSTOP)
    assert running.process.stderr is not None
    line = running.process.stderr.readline()
    assert f"process {running.child} is stopped by a signal, and is not taken for one that hangs" in line
    assert f"kill -CONT {running.child}" in line
    time.sleep(2.5)  # longer than the limit
    os.kill(running.child, signal.SIGCONT)
    (tmp_path / "end").touch()
    code, err = running.end()
    assert (code, err) == (0, "")
    with CheckpointStore(store, read_only=True) as reader:
        (event,) = reader.events(kind="paused")
    assert event.run == "digits" and event.detail is not None and event.detail["by"] == "stopped"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_a_training_in_another_session_is_watched_through_the_processes_above_it(
    tmp_path: Path, store: Path
) -> None:
    """A shell around the training, and a launcher that gives it a session of its own."""
    script = tmp_path / "train.py"
    script.write_text(TRAINING + BLOCKED)
    shell = f"setsid --wait {sys.executable} {script}; exit $?"
    options = ("--hang-after", 2, "--grace", 1, "--pause", 0, "--json")
    ran = Ran(tmp_path, "store", *options, "--", "sh", "-c", shell)
    assert (ran.code, ran.starts, ran.json["ends"]) == (0, 2, {"hang": 1, "finished": 1}), ran.err


# --- other reasons ---------------------------------------------------------------------------------


def test_a_killed_attempt_has_its_signal_and_its_last_words(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    script = TRAINING + "for n in range(30): print('line', n)\nos.kill(os.getpid(), 9)"
    ran = Ran(tmp_path, "store", "--pause", 0, "--json", "--", sys.executable, "-c", script)
    assert (ran.code, ran.json["ends"]) == (0, {"killed": 1, "finished": 1}), ran.err
    killed, _ = attempts(store)
    assert (killed.reason, killed.signal, killed.exit_code) == ("killed", "SIGKILL", None)
    assert killed.detail["output"] == [f"line {n}" for n in range(10, 30)]


def test_an_exception_at_the_same_step_twice_ends_it(tmp_path: Path, store: Path) -> None:
    script = TRAINING.replace("if not is_first:", "if False:") + (
        "manifest.attempts.end('digits', number, reason='exception', detail={'type': 'ValueError',\n"
        "    'message': 'bad record', 'frames': ['data.py, line 3, in load']})\n"
        "heartbeat.end()\n"
        "raise SystemExit(1)\n"
    )
    ran = Ran(tmp_path, "store", "--pause", 0, "--json", "--", sys.executable, "-c", script)
    assert (ran.code, ran.starts, ran.json["stopped"]) == (1, 2, "same_exception")
    assert ran.json["message"] == (
        "the same exception twice, at step 3: ValueError: bad record data.py, line 3, in load"
    )
    with CheckpointStore(store, read_only=True) as reader:
        (event,) = reader.events(kind="stopped")
        assert [attempt.exit_code for attempt in reader.attempts()] == [1, 1]
    assert (event.run, (event.detail or {})["reason"]) == ("digits", "same_exception")


def test_a_kill_for_want_of_memory_is_told_from_another_kill(tmp_path: Path, store: Path) -> None:
    group = Path(f"/sys/fs/cgroup/memory/ckptstore-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(96 << 20))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        script = TRAINING + (
            f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
            "time.sleep(2)\n"  # until the supervisor has seen where it is now
            "held = [b'x' * (1 << 20) for _ in range(500)]\n"
        )
        options = ("--pause", 0, "--json", "--hang-after", 5)
        ran = Ran(tmp_path, "store", *options, "--", sys.executable, "-c", script)
        assert (ran.code, ran.json["ends"]) == (0, {"oom": 1, "finished": 1}), ran.err
    finally:
        group.rmdir()
    assert attempts(store)[0].reason == "oom"
    assert "killed by SIGKILL (out of memory)" in ran.err
