"""`ckptstore run`: restarts of real commands that save, fail, crash and are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save
from supervised import COMMAND, GRACE_S, STOPPABLE, STUBBORN, Ran, Start, command_line, steps

# --- restarts -----------------------------------------------------------------------


def test_a_command_that_ends_well_is_started_once(tmp_path: Path) -> None:
    ran = steps(tmp_path, "say hello,exit 0")
    assert (ran.code, ran.out, ran.starts) == (0, "said hello\n", 1)
    assert ran.err == (
        "ckptstore run: the command ended with exit code 0, but no checkpoint is in "
        f"{tmp_path / 'store'}: was it to save there?\n"
    )
    assert not list(tmp_path.glob(".ckptstore*")), "it was shown, and there is no store to keep it in"


def test_a_command_that_has_saved_is_done_without_a_word(tmp_path: Path) -> None:
    ran = steps(tmp_path, "save,exit 0")
    assert (ran.code, ran.out, ran.err, ran.starts) == (0, "", "", 1)


def test_a_crash_is_restarted_from_the_last_checkpoint(tmp_path: Path) -> None:
    ran = steps(tmp_path, "kill 9", "save,kill 11", "save,exit 75", "exit 0")
    assert (ran.code, ran.starts) == (0, 4)
    first, second, third = ran.err.splitlines()
    assert first == (
        "ckptstore run: the command was killed by SIGKILL; start 2 begins from scratch: there is no resume "
        "point yet"
    )
    assert second.startswith(
        "ckptstore run: the command was killed by SIGSEGV; start 3 resumes from version 1: "
    )
    assert "epoch 1, batch 1, step 10, " in second and second.endswith(" s old")
    assert "interrupted (exit code 75); start 4 resumes from version 2: epoch 2, batch 2, step 20" in third


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_nobody_reading_its_lines_changes_neither_restarts_nor_exit_code(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    plan = ["save,kill 9", "exit 75"]
    arguments = ["store", "--pause", 0, *options, "--", sys.executable, "-c", COMMAND, *plan]
    try:
        done = subprocess.run(
            command_line(*arguments),
            cwd=tmp_path,
            stdout=writer,
            stderr=writer,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, len((tmp_path / "starts").read_text())) == (75, 6)


@pytest.mark.parametrize(("step", "code"), [("exit 75", 75), ("kill 9", 137), ("kill 15", 143)])
def test_without_progress_it_gives_up_after_some_starts(tmp_path: Path, step: str, code: int) -> None:
    ran = steps(tmp_path, step)
    assert (ran.code, ran.starts) == (code, 5)
    assert ran.err.splitlines()[-1].endswith("not restarted: 5 starts in a row without a new checkpoint")


def test_progress_resets_the_count_of_starts_without_progress(tmp_path: Path) -> None:
    plan = ["kill 9", "save,kill 9", "kill 9", "save,kill 9", "kill 9"]
    ran = steps(tmp_path, *plan, options=("--max-without-progress", 2))
    assert ran.starts == 6


def test_the_same_failure_twice_without_progress_ends_it(tmp_path: Path) -> None:
    ran = steps(tmp_path, "save,exit 3", "save,exit 3", "exit 4")
    assert (ran.code, ran.starts) == (4, 4)
    assert ran.err.splitlines()[-1] == (
        "ckptstore run: the command ended with exit code 4; not restarted: it has failed twice without saving a "
        "checkpoint, and would fail again"
    )


def test_the_same_exception_twice_before_the_first_batch_ends_it_and_is_named(tmp_path: Path) -> None:
    ran = Ran(tmp_path, "store", "--pause", 0, "--json", "--", sys.executable, "-c", "import no_such_module")
    assert (ran.code, ran.json["restarts"], ran.json["stopped"]) == (1, 1, "same_exception")
    assert ran.json["message"] == (
        "the same exception twice, before the first batch: ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_other_exceptions_each_time_are_no_repetition(tmp_path: Path) -> None:
    code = "import os; raise ValueError(os.getpid())"
    ran = Ran(tmp_path, "store", "--pause", 0, "--json", "--", sys.executable, "-c", code)
    assert (ran.code, ran.json["restarts"], ran.json["stopped"]) == (1, 4, "no_progress")


def test_earlier_checkpoints_are_no_progress(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    ran = steps(tmp_path, "exit 3")
    assert (ran.code, ran.starts) == (3, 2)


def test_only_the_named_run_counts(tmp_path: Path) -> None:
    ran = steps(tmp_path, "save other,exit 3", options=("--run", "mine"))
    assert (ran.code, ran.starts) == (3, 2)
    assert steps(tmp_path, "exit 0", "save mine,exit 3", "exit 0", options=("--run", "mine")).code == 0


@pytest.mark.parametrize("most", [0, 2])
def test_the_number_of_restarts_can_be_limited(tmp_path: Path, most: int) -> None:
    ran = steps(tmp_path, "save,exit 75", options=("--max-restarts", most))
    assert (ran.code, ran.starts) == (75, most + 1)
    assert f"not restarted: {most} restarts are the limit" in ran.err


def test_pauses_grow_and_are_reported(tmp_path: Path) -> None:
    options = ("--pause", 0.01, "--max-without-progress", 4)
    ran = steps(tmp_path, "kill 9", options=options)
    pauses = [float(line.partition(", in ")[2].partition(" s,")[0]) for line in ran.err.splitlines()[:-1]]
    for pause, middle in zip(pauses, (0.01, 0.02, 0.04), strict=True):
        assert 0.75 * middle <= pause <= 1.25 * middle


# --- output ------------------------------------------------------------------------------


def test_json_is_the_only_thing_on_stdout(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    ran = steps(tmp_path, "say one,save,kill 9", "say two,save,exit 75", "exit 0", options=("--json",))
    assert (ran.code, ran.starts) == (0, 3)
    point = ran.json.pop("resume_point")
    assert (point["version"], point["epoch"]) == (3, 1)
    assert {key: ran.json[key] for key in ("exit_code", "restarts", "checkpoints")} == {
        "exit_code": 0, "restarts": 2, "checkpoints": 2,
    }  # fmt: skip
    assert "said one" in ran.err and "said two" in ran.err


def test_json_without_a_store(tmp_path: Path) -> None:
    ran = steps(tmp_path, "exit 3", options=("--json",))
    document = ran.json
    log = document.pop("log")
    assert (ran.code, document) == (
        3,
        {
            "exit_code": 3,
            "restarts": 1,
            "checkpoints": 0,
            "resume_point": None,
            "stopped": "same_exception",
            "message": "it has failed twice without saving a checkpoint, and would fail again",
            "ends": {"exception": 2},
        },
    )
    assert not (tmp_path / "store").exists()
    assert Path(log).is_file(), "a failure's output is kept"


# --- commands that cannot be run --------------------------------------------------------------------------


def test_a_command_that_does_not_exist_is_127(tmp_path: Path) -> None:
    ran = Ran(tmp_path, "store", "--", "no-such-command", "--flag")
    assert (ran.code, ran.out) == (127, "")
    assert ran.err == "ckptstore run: no-such-command: No such file or directory\n"


def test_a_command_that_is_not_executable_is_126(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("not for running")
    ran = Ran(tmp_path, "store", "--", "./script")
    assert (ran.code, ran.err) == (126, "ckptstore run: ./script: Permission denied\n")


@pytest.mark.parametrize("place", ["file", "file/store"])
def test_a_store_that_cannot_be_created_is_a_usage_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    ran = Ran(tmp_path, place, "--", sys.executable, "-c", COMMAND, "exit 0")
    assert (ran.code, ran.starts) == (2, 0)
    assert "it is a file, not a directory" in ran.err and "Usage: ckptstore run" in ran.err


def test_a_command_is_needed(tmp_path: Path) -> None:
    assert Ran(tmp_path, "store").code == 2


def test_an_unreadable_store_is_reported_and_is_no_progress(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.sqlite").write_bytes(b"no database at all " * 1000)
    ran = steps(tmp_path, "exit 3")
    assert (ran.code, ran.starts) == (3, 2)
    assert "the store cannot be read" in ran.err


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_signal_is_passed_on_once_and_ends_it_without_a_restart(
    tmp_path: Path, start: Start, name: str, code: int
) -> None:
    running = start(STOPPABLE)
    running.process.send_signal(getattr(signal, name))
    ended, stderr = running.end()
    assert (tmp_path / "saved").read_text() == name
    assert ended == code
    assert stderr.splitlines()[-1].endswith("not restarted: a signal asked to stop")


def test_a_signal_to_every_process_of_a_job_stops_it_once(tmp_path: Path, start: Start) -> None:
    """As systemd and SLURM send it: the child gets it directly, and from us."""
    running = start(STOPPABLE)
    for process in (running.child, running.process.pid):
        os.kill(process, signal.SIGTERM)
    assert running.end()[0] == 75
    assert (tmp_path / "saved").read_text() == "SIGTERM"


def test_ctrl_c_reaches_the_child_once(start: Start) -> None:
    """A terminal sends SIGINT to its foreground process group."""
    running = start(STUBBORN, "--grace", GRACE_S, process_group=0)
    assert os.getpgid(running.child) == running.child, "it is not in the group that a terminal signals"
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.line() == f"got {int(signal.SIGINT)}\n"
    running.process.terminate()
    assert running.line() == f"got {int(signal.SIGTERM)}\n"
    assert running.end()[0] == 128 + signal.SIGKILL


def test_a_second_signal_is_passed_on_before_the_kill(start: Start) -> None:
    running = start(STUBBORN, "--grace", GRACE_S)
    running.process.send_signal(signal.SIGTERM)
    assert running.line() == f"got {int(signal.SIGTERM)}\n"
    running.process.send_signal(signal.SIGINT)
    assert running.line() == f"got {int(signal.SIGINT)}\n"
    assert running.end()[0] == 128 + signal.SIGKILL


def test_a_signal_during_a_pause_ends_with_75(start: Start) -> None:
    script = "import os\nprint('ready', os.getpid(), flush=True)\nos.kill(os.getpid(), 9)"
    running = start(script, "--pause", 60)
    assert running.process.stderr is not None
    assert "start 2, in " in running.process.stderr.readline()
    running.process.terminate()
    assert running.end() == (75, "ckptstore run: not restarted: a signal asked to stop\n")


def test_a_signal_ignored_from_the_start_stays_ignored(start: Start) -> None:
    """As SIGINT is in commands that a script starts in the background."""
    ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    running = start(STUBBORN, "--grace", GRACE_S, **ignoring)
    for number in (signal.SIGINT, signal.SIGTERM):
        running.process.send_signal(number)
    assert running.line() == f"got {int(signal.SIGTERM)}\n"
    running.process.send_signal(signal.SIGUSR1)
    assert running.line() == f"got {int(signal.SIGUSR1)}\n"
    assert running.end()[0] == 128 + signal.SIGKILL
