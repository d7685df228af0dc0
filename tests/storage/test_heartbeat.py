"""Heartbeats with real files, locks and processes: what they tell, what they cost, and that they never do harm."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore.records import Beat
from ckptstore.storage import byte_locks
from ckptstore.storage import heartbeat as module
from ckptstore.storage.heartbeat import Heartbeat
from ckptstore.storage.heartbeat_file import NBYTES, encode, is_held, read_heartbeat
from ckptstore.storage.layout import Layout
from ckptstore.system.processes import clock_s
from crash.steps import run_in_child
from mounts import mounted

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """The paths of an empty store."""
    root = tmp_path / "store"
    ckptstore.CheckpointStore(root).close()
    return Layout(root)


def beat_of(layout: Layout, run: str = "digits") -> Beat:
    beat = read_heartbeat(layout.heartbeats / run)
    assert beat is not None
    return beat


@pytest.fixture
def every_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sign of life is written, however soon it follows."""
    monkeypatch.setattr(module, "INTERVAL_S", 0.0)
    monkeypatch.setattr(module, "_LONGEST_INTERVAL_S", 0.0)


@pytest.mark.usefixtures("every_write")
def test_it_tells_where_a_training_stands(layout: Layout) -> None:
    before = clock_s()
    heartbeat = Heartbeat.begin(layout, "digits", 3)
    heartbeat.epochs, heartbeat.batches = 10, 8
    assert beat_of(layout).phase == "starting"
    logs = {
        "loss": 0.125,
        "count": np.int64(3),
        "array": np.ones(2),
        "nan": float("nan"),
        "f64": np.float64(2),
    }
    heartbeat.beat(0, 0, 1, logs)
    heartbeat.beat(0, 1, 2)
    beat = beat_of(layout)
    assert (beat.run, beat.attempt, beat.pid) == ("digits", 3, os.getpid())
    assert (beat.phase, beat.epoch, beat.batch, beat.step) == ("training", 0, 1, 2)
    assert (beat.epochs, beat.batches, beat.dump) == (10, 8, None)
    assert beat.metrics == {"loss": 0.125, "f64": 2.0}
    assert beat.steps_per_s is not None
    assert before - 0.001 <= beat.phase_since_s <= beat.at_s <= clock_s() + 0.001
    assert heartbeat.enter("validating") == "training"
    heartbeat.alive()
    assert beat_of(layout).phase == "validating"
    heartbeat.enter("paused")
    heartbeat.enter("paused", epoch=1)
    heartbeat.beat(1, 0, 9)
    assert (beat_of(layout).epoch, beat_of(layout).batch) == (1, 0)
    heartbeat.end()
    heartbeat.end()
    assert beat_of(layout).phase == "ended"
    assert set(beat_of(layout).slowest_s) <= {"start", "batch", "validation", "epoch_gap"}


@pytest.mark.usefixtures("every_write")
def test_the_next_attempt_takes_the_longest_silences_over(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    first = Heartbeat.begin(layout, "digits", 1)
    for wait, batch in ((300.0, 0), (2.0, 1), (90.0, 2), (1.0, 3)):
        now[0] += wait
        first.beat(0, batch, batch + 1)
    first.enter("saving")
    now[0] += 5.0
    first.enter("training")
    first.end()
    second = Heartbeat.begin(layout, "digits", 2)
    assert second.before is not None
    assert second.before.attempt == 1
    now[0] += 1.0
    second.beat(0, 4, 5)
    second.end()
    assert beat_of(layout).slowest_s == {"start": 300.0, "batch": 90.0, "save": 5.0}
    assert beat_of(layout).attempt == 2


@pytest.mark.parametrize(
    ("phase", "slowest", "limit"),
    [
        ("training", {}, 1800.0),
        ("validating", {"batch": 29.0}, 1800.0),
        ("training", {"batch": 29.0, "start": 500.0}, 600.0),
        ("training", {"batch": 31.0}, 620.0),
        ("starting", {"batch": 100.0}, 1800.0),
        ("starting", {"start": 100.0}, 2000.0),
        ("validating", {"validation": 3600.0}, 72000.0),
        ("saving", {"save": 60.0}, 1200.0),
    ],
)
def test_the_limit_of_a_silence_is_learnt(
    layout: Layout, phase: Any, slowest: dict[str, float], limit: float
) -> None:
    Heartbeat.begin(layout, "digits").end()
    fields = {name: getattr(beat_of(layout), name) for name in Beat.__slots__}
    assert Beat(**fields | {"phase": phase, "slowest_s": slowest}).hang_limit_s() == limit


def test_a_thousand_fast_batches_are_one_write(layout: Layout) -> None:
    heartbeat = Heartbeat.begin(layout, "digits")
    heartbeat.beat(0, 0, 1)
    written = beat_of(layout)
    heartbeat._next_write_s += 3600.0
    for batch in range(1, 1000):
        heartbeat.beat(0, batch, batch + 1)
    assert beat_of(layout) == written
    heartbeat.end()
    assert beat_of(layout).step == 1000


@linux_only
def test_a_batch_makes_no_system_call(layout: Layout, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    script = """
    import os, sys
    from pathlib import Path
    from ckptstore.storage import heartbeat
    from ckptstore.storage.layout import Layout
    heartbeat.INTERVAL_S = 3600.0
    beating = heartbeat.Heartbeat.begin(Layout(Path(sys.argv[1])), "digits")
    beating.beat(0, 0, 1, {"loss": 1.0})
    for round in range(2):
        os.write(2, b"a round begins\\n")
        for batch in range(1, 1000 * round):
            beating.beat(0, batch, batch + 1, {"loss": 1.0})
    os.write(2, b"the rounds end\\n")
    """
    log = tmp_path / "calls"
    command = [strace, "-o", str(log), sys.executable, "-c", textwrap.dedent(script), str(layout.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"this process may not trace: {done.stderr}")
    assert done.returncode == 0, done.stderr
    lines = log.read_text(encoding="utf-8").splitlines()
    begins = max(number for number, line in enumerate(lines) if "a round begins" in line)
    ends = next(number for number, line in enumerate(lines) if "the rounds end" in line)
    # Memory of Python's own may be asked for or given back.
    calls = [line for line in lines[begins + 1 : ends] if not re.match(r"(brk|mmap|munmap|madvise)\(", line)]
    assert not calls


@pytest.mark.parametrize("content", ["", "x" * NBYTES, "torn", "foreign", "longer", "another version"])
def test_what_is_torn_or_foreign_reads_as_nothing(layout: Layout, content: str) -> None:
    path = layout.heartbeats / "digits"
    Heartbeat.begin(layout, "digits", 1).end()
    good = path.read_bytes()
    assert len(good) == NBYTES
    fields = json.loads(good[17:])
    damaged: dict[str, bytes] = {
        "torn": good[:700] + good[700:].replace(b" ", b"x"),
        "foreign": good[:300],
        "longer": good + b" ",
        "another version": encode({**fields, "of the future": 1}),
    }
    path.write_bytes(damaged.get(content, content.encode()))
    assert read_heartbeat(path) is None
    assert not is_held(path)
    # The next attempt makes it good again.
    heartbeat = Heartbeat.begin(layout, "digits", 2)
    assert heartbeat.before is None
    path.write_bytes(path.read_bytes()[:NBYTES])
    heartbeat.end()
    assert beat_of(layout).attempt == 2


def test_metrics_that_there_is_no_room_for_are_left_out(layout: Layout) -> None:
    heartbeat = Heartbeat.begin(layout, "r" * 100)
    heartbeat.beat(0, 0, 1, {f"a_long_name_of_a_metric_{number}": number / 7 for number in range(100)})
    heartbeat.end()
    beat = beat_of(layout, "r" * 100)
    assert 3 < len(beat.metrics) < 100
    assert "a_long_name_of_a_metric_0" in beat.metrics


def test_other_things_at_the_path_are_left_alone(layout: Layout, capfd: pytest.CaptureFixture[str]) -> None:
    layout.heartbeats.mkdir()
    (layout.heartbeats / "folder").mkdir()
    os.mkfifo(layout.heartbeats / "pipe")
    (layout.heartbeats / "link").symlink_to(layout.root / "elsewhere")
    for run in ("folder", "pipe", "link"):
        heartbeat = Heartbeat.begin(layout, run)
        heartbeat.beat(0, 0, 1)
        heartbeat.end()
        assert read_heartbeat(layout.heartbeats / run) is None
        assert not is_held(layout.heartbeats / run)
    assert not (layout.root / "elsewhere").exists()
    assert capfd.readouterr().err.count("the training is not affected") == 3


# --- the lock ----------------------------------------------------------------------------------------


def _holding(layout: Layout, run: str = "digits") -> subprocess.Popen[str]:
    script = """
    import sys
    from pathlib import Path
    from ckptstore.storage.heartbeat import Heartbeat
    from ckptstore.storage.layout import Layout
    heartbeat = Heartbeat.begin(Layout(Path(sys.argv[1])), sys.argv[2])
    heartbeat.beat(0, 0, 1)
    print("holds", flush=True)
    sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(layout.root), run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    return process


def test_it_is_held_until_its_process_is_killed(layout: Layout) -> None:
    path = layout.heartbeats / "digits"
    assert not is_held(path)
    with _holding(layout) as process:
        assert is_held(path)
        process.send_signal(signal.SIGSTOP)
        assert is_held(path)
        process.kill()
        process.wait()
        assert not is_held(path)
    assert beat_of(layout).phase == "training"


def _exit_1_if_held(path: Path) -> None:
    os._exit(int(is_held(path)))


def test_it_is_held_in_the_same_process_too_and_reading_does_not_release_it(layout: Layout) -> None:
    path = layout.heartbeats / "digits"
    heartbeat = Heartbeat.begin(layout, "digits")
    for _ in range(3):
        assert read_heartbeat(path) is not None
        assert is_held(path)
    assert run_in_child(_exit_1_if_held, path) == 1
    heartbeat.end()
    assert not is_held(path)
    dropped = Heartbeat.begin(layout, "digits")
    assert is_held(path)
    del dropped
    assert not is_held(path)


@linux_only
def test_a_forked_child_that_outlives_the_training_does_not_hold_it(layout: Layout) -> None:
    script = """
    import os, signal, sys
    from pathlib import Path
    from ckptstore.storage.heartbeat import Heartbeat
    from ckptstore.storage.layout import Layout
    heartbeat = Heartbeat.begin(Layout(Path(sys.argv[1])), "digits")
    heartbeat.beat(0, 0, 1)
    if os.fork() == 0:
        heartbeat.beat(5, 5, 5)
        heartbeat.enter("paused")
        heartbeat.end()
        print("forked", flush=True)
        sys.stdin.read()
        os._exit(0)
    signal.pause()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(layout.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        path = layout.heartbeats / "digits"
        assert is_held(path)
        assert (beat_of(layout).phase, beat_of(layout).step) == ("training", 1)
        process.kill()
        process.wait()
        assert not is_held(path)  # though the child lives
        assert process.stdin is not None
        process.stdin.close()


def test_without_such_locks_the_process_in_the_file_is_asked(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_locks, "_GET", None)
    path = layout.heartbeats / "digits"
    with _holding(layout) as process:
        assert is_held(path)
        process.kill()
        process.wait()
        assert not is_held(path)
    heartbeat = Heartbeat.begin(layout, "digits")
    assert is_held(path)
    heartbeat.end()
    assert not is_held(path)


# --- disks that fail ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("every_write")
def test_a_removed_file_is_made_again(layout: Layout) -> None:
    path = layout.heartbeats / "digits"
    heartbeat = Heartbeat.begin(layout, "digits")
    path.unlink()
    heartbeat.beat(0, 0, 1)
    assert beat_of(layout).step == 1
    assert is_held(path)
    shutil.rmtree(layout.heartbeats)
    heartbeat.beat(0, 1, 2)
    assert beat_of(layout).step == 2
    assert is_held(path)
    heartbeat.end()


@pytest.mark.usefixtures("every_write")
def test_nothing_is_made_in_the_place_of_a_removed_store(
    layout: Layout, capfd: pytest.CaptureFixture[str]
) -> None:
    heartbeat = Heartbeat.begin(layout, "digits")
    shutil.rmtree(layout.root)
    for batch in range(3):
        heartbeat.beat(0, batch, batch + 1)
    heartbeat.end()
    assert not layout.root.exists()
    assert capfd.readouterr().err.count("the training is not affected") == 1


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small tmpfs")
@pytest.mark.usefixtures("every_write")
def test_a_full_or_read_only_disk_does_no_harm(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64k", "tmpfs") as disk:
        (disk / "manifest.sqlite").touch()
        layout = Layout(disk)
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        heartbeat = Heartbeat.begin(layout, "digits")
        heartbeat.beat(0, 0, 1)
        assert read_heartbeat(layout.heartbeats / "digits") is None
        filler.unlink()
        heartbeat.beat(0, 1, 2)
        assert beat_of(layout).step == 2
        assert is_held(layout.heartbeats / "digits")
        subprocess.run(["mount", "-o", "remount,size=16k", disk], check=False, capture_output=True)
        heartbeat.beat(0, 2, 3)  # in place: it needs no room
        assert beat_of(layout).step == 3
        heartbeat.end()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        second = Heartbeat.begin(layout, "digits")
        second.beat(0, 0, 1)
        second.end()
        assert beat_of(layout).step == 3
        assert capfd.readouterr().err.count("the training is not affected") == 2


def test_a_slow_disk_costs_a_hundredth_of_the_time(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    now, writes = [0.0], []

    def slow_write(descriptor: int, content: bytes, offset: int) -> int:
        now[0] += 0.5
        writes.append(offset)
        return len(content)

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.os, "pwrite", slow_write)
    heartbeat = Heartbeat.begin(layout, "digits")
    for batch in range(1000):
        now[0] += 0.1
        heartbeat.beat(0, batch, batch + 1)
    assert 2 <= len(writes) <= 4
    heartbeat.end()


def test_the_rest_of_the_store_takes_no_notice(layout: Layout) -> None:
    heartbeat = Heartbeat.begin(layout, "digits")
    with ckptstore.CheckpointStore(layout.root) as store:
        assert not store.verify()
        assert not store.repair()
    assert is_held(layout.heartbeats / "digits")
    assert not ckptstore.CheckpointStore.rebuild(layout.root)[1:]
    assert is_held(layout.heartbeats / "digits")
    heartbeat.end()
    assert ckptstore.CheckpointStore.discard(layout.root)
    assert not layout.root.exists()
