"""Each attempt at a run is recorded with the true reason of its end, also by drop-ins and loops by hand."""

from __future__ import annotations

import gzip
import os
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import keras
import pytest

from ckptstore import CheckpointStore
from ckptstore.records import Attempt
from ended_attempts import ends_of
from mounts import mounted

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.backend


def attempts(store: Path, run: str | None = "r") -> list[Attempt]:
    with CheckpointStore(store, read_only=True) as opened:
        return opened.attempts(run)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("ended")
    cases = (
        "killed@k", "finished@k", "terminated", "interrupted_by_signal", "interrupted", "callback_raises", "exits",
        "data_raises", "step_raises", "validation_raises", "not_a_number", "two_fits", "drop_ins", "loops_by_hand",
        "unclosed_loop",
    )  # fmt: skip
    return folder, ends_of(BACKEND, folder, *cases)


def test_a_killed_attempt_is_closed_by_the_next(ended: tuple[Path, dict[str, int]]) -> None:
    folder, codes = ended
    assert (codes["killed@k"], codes["finished@k"]) == (-9, 0)
    killed, finished = attempts(folder / "k")
    assert (killed.attempt, killed.reason, killed.resumed_from) == (1, "killed", None)
    assert killed.started_at < killed.ended_at < finished.started_at
    assert (finished.attempt, finished.reason, finished.resumed_from) == (2, "finished", 1)
    assert finished.started_at < finished.ended_at
    with CheckpointStore(folder / "k") as store:
        assert store._manifest.attempts.open_attempts() == []


def test_where_and_on_which_code_an_attempt_ran(ended: tuple[Path, dict[str, int]]) -> None:
    found = attempts(ended[0] / "k")[-1]
    assert found.host and found.pid > 1 and found.directory == str(Path.cwd())
    assert found.command[1].endswith("ended_attempts.py")
    assert {"python", "keras", "numpy", "ckptstore", BACKEND} <= found.versions.keys()
    assert found.versions["backend"] == BACKEND and found.versions["keras"] == keras.__version__
    assert found.environment["KERAS_BACKEND"] == BACKEND and "PATH" not in found.environment
    assert found.devices and not found.supervised and found.log is None
    assert found.git_commit is None and found.git_dirty is None and found.diff is None


@pytest.mark.parametrize(
    ("case", "code", "reason", "detail"),
    [
        ("terminated", 75, "preempted", {"signal": "SIGTERM"}),
        ("interrupted_by_signal", 1, "interrupted", {"signal": "SIGINT"}),
        ("interrupted", 1, "interrupted", {"type": "KeyboardInterrupt"}),
        (
            "callback_raises",
            1,
            "exception",
            {"type": "ValueError", "message": "bad luck, https://me:***@host"},
        ),
        ("exits", 3, "exception", {"type": "SystemExit", "message": "3"}),
        ("data_raises", 1, "exception", {"type": "LookupError", "message": "no such row"}),
        ("step_raises", 0, "exception", {"type": "RuntimeError"}),
        ("validation_raises", 0, "exception", {"type": "ArithmeticError"}),
        ("not_a_number", 0, "nan", {}),
        ("unclosed_loop", 0, "finished", {}),
    ],
)
def test_the_recorded_reason_is_the_true_one(
    ended: tuple[Path, dict[str, int]], case: str, code: int, reason: str, detail: dict[str, str]
) -> None:
    folder, codes = ended
    (attempt,) = attempts(folder / case)
    if BACKEND == "tensorflow" and case in ("data_raises", "validation_raises"):
        detail = {}  # an operation of the compiled step raises, in TensorFlow's words
    assert (codes[case], attempt.reason) == (code, reason), attempt.detail
    assert detail.items() <= attempt.detail.items(), attempt.detail
    assert attempt.started_at <= attempt.ended_at
    if reason == "exception":
        assert BACKEND == "tensorflow" or any(
            "ended_attempts.py" in frame for frame in attempt.detail["frames"]
        )
        assert 1 <= len(attempt.detail["frames"]) <= 5


def test_two_fits_of_one_process_are_attempts_at_two_runs(ended: tuple[Path, dict[str, int]]) -> None:
    found = attempts(ended[0] / "two_fits", None)
    assert [(attempt.run, attempt.attempt, attempt.reason) for attempt in found] == [
        ("default", 1, "finished"),
        ("default-2", 1, "finished"),
    ]
    assert found[0].pid == found[1].pid


def test_drop_in_callbacks_record_their_attempts(ended: tuple[Path, dict[str, int]]) -> None:
    folder = ended[0] / "drop_ins"
    (backup,) = attempts(folder / "backup", None)
    assert (backup.run, backup.reason) == ("backup", "finished")
    first, second = attempts(folder / ".ckptstore", None)
    # On torch the exception of another callback is seen only if it ends the process.
    reason, detail = ("unknown", {}) if BACKEND == "torch" else ("exception", {"message": "again"})
    assert (first.run, first.reason, second.reason) == ("m", "finished", reason)
    assert detail.items() <= second.detail.items()


def test_loops_by_hand_record_their_attempts(ended: tuple[Path, dict[str, int]]) -> None:
    folder, codes = ended
    found = {attempt.run: attempt for attempt in attempts(folder / "loops_by_hand", None)}
    assert {run: attempt.reason for run, attempt in found.items()} == {
        "well": "finished",
        "raises": "exception",
        "unclosed": "interrupted",
    }
    assert found["raises"].detail["message"] == "by hand" and codes["loops_by_hand"] == 1


@pytest.mark.jax_is_enough
@pytest.mark.slow
def test_a_full_disk_is_recorded_as_such(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as disk:
        assert ends_of(BACKEND, disk, "disk_full")["disk_full"] == 1
        (attempt,) = attempts(disk / "disk_full")
        assert attempt.reason == "disk_full" and attempt.detail["type"].endswith("DiskFullError")
        (disk / "filler").unlink()


@pytest.mark.jax_is_enough
@pytest.mark.slow
def test_a_kill_for_want_of_memory_is_told_from_others(tmp_path: Path) -> None:
    own = next(
        (
            line.split(":", 2)[2]
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if ":memory:" in line
        ),
        None,
    )
    if own is None:
        pytest.skip("no control group for memory that a test may make")
    group = Path("/sys/fs/cgroup/memory", own.lstrip("/"), f"ckptstore-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1500 << 20))
    except OSError as error:
        pytest.skip(f"cannot make a control group here: {error}")
    try:
        cases = ("out_of_memory@r", "finished_in_group@r")
        codes = ends_of(BACKEND, tmp_path, *cases, TEST_CGROUP=str(group))
        assert list(codes.values()) == [-9, 0]
        assert [attempt.reason for attempt in attempts(tmp_path / "r")] == ["oom", "finished"]
    finally:
        group.rmdir()


# --- git -------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "GIT_DIR"}
    options = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *options, *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def script(folder: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Save by hand in a process of its own, which has its working directory in a folder."""
    program = (
        "import sys, time, keras; from small_fits import model; from ckptstore import CheckpointStore\n"
        "made = model()\n"
        "began = time.perf_counter()\n"
        "with CheckpointStore(sys.argv[1]) as store:\n"
        "    for epoch in range(2): store.save(made, epoch=epoch, run='r')\n"
        "    print('trained', time.perf_counter() - began)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GIT_DIR"}
    environment["PATH"] = path + os.environ["PATH"]
    import sys

    return subprocess.run(
        [sys.executable, "-c", program, str(folder.parent / "store"), "--api-key", "k3y"],
        cwd=folder, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.jax_is_enough
@pytest.mark.slow
def test_commit_and_difference_are_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "train.py").write_text("lr = 0.1\n")
    git(folder, "add", "train.py")
    git(folder, "commit", "-q", "-m", "first")
    commit = git(folder, "rev-parse", "HEAD")
    script(folder)
    (folder / "train.py").write_text("lr = 0.2\n")
    for _ in range(2):
        script(folder)
    (folder / "train.py").write_text("x" * 400_000)
    script(folder)
    clean, dirty, again, huge = attempts(tmp_path / "store")
    assert {attempt.git_commit for attempt in (clean, dirty, again, huge)} == {commit}
    assert [attempt.git_dirty for attempt in (clean, dirty, again, huge)] == [False, True, True, True]
    assert clean.diff is None and clean.detail == {}
    assert dirty.diff == again.diff == tmp_path / "store" / "logs" / "r" / "2.diff.gz"
    assert "+lr = 0.2" in gzip.decompress(dirty.diff.read_bytes()).decode()
    assert len(gzip.decompress(huge.diff.read_bytes())) == 256 << 10 and "longer than" in huge.detail["git"]
    assert "k3y" not in " ".join(clean.command) and clean.command[-2:] == ("--api-key", "***")


@pytest.mark.jax_is_enough
@pytest.mark.slow
def test_a_git_that_hangs_delays_no_training(tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho $$ >> $(dirname $0)/pids\nsleep 600\n")
    fake.chmod(0o755)
    (tmp_path / "code").mkdir()
    began = time.monotonic()
    done = script(tmp_path / "code", f"{fake.parent}:")
    assert float(done.stdout.split()[1]) < 5.0 and time.monotonic() - began < 60
    (attempt,) = attempts(tmp_path / "store")
    assert attempt.git_commit is None and attempt.reason == "finished"
    assert "had not answered" in attempt.detail["git"]
    assert attempt.ended_at - attempt.started_at < timedelta(seconds=5)
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in (fake.parent / "pids").read_text().split()):
        assert time.monotonic() < until
        time.sleep(0.01)
