"""`ckptstore watch`, driven on a real terminal: screens, keys, signals, what it prints elsewhere, and what it costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from ckptstore.cli.main import main
from ckptstore.errors import NotAStoreError
from ckptstore.storage.heartbeat import Heartbeat
from ckptstore.storage.layout import Layout
from ckptstore.store.observer import StoreObserver
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save
from past_stores import STORES
from screens import Screen

WATCH = (sys.executable, "-m", "ckptstore", "watch")
NASTY = "n\x1b[31m\x9b2J\u202egpj.\u2028\x07"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a store with three runs."""
    root = tmp_path / "digits"
    with CheckpointStore(root) as store:
        for run, offset in (("one", 0.0), ("two", 0.5), ("three", 1.0)):
            for epoch in range(4):
                metrics = {"loss": offset + 1 / (epoch + 1), "val_loss": offset + 2 / (epoch + 1)}
                save(
                    store, epoch, run=run, step=10 * (epoch + 1), metrics=metrics, monitor=("val_loss", "min")
                )
    return root


@contextmanager
def training(root: Path, run: str) -> Iterator[Heartbeat]:
    """Hold the heartbeat of a run, as if this process trained it: in the fifth of 20 epochs, of 10 batches each."""
    heartbeat = Heartbeat.begin(Layout(root), run, 1)
    heartbeat.epochs, heartbeat.batches = 20, 10
    heartbeat.beat(4, 2, 43, {"loss": 0.125})
    heartbeat.enter("validating")
    heartbeat.enter("training")
    try:
        yield heartbeat
    finally:
        heartbeat.end()


def lines_of(watching: subprocess.Popen[str]) -> Iterator[str]:
    assert watching.stdout is not None
    for line in watching.stdout:
        yield line.rstrip("\n")


@contextmanager
def printing(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run the command without a terminal."""
    with subprocess.Popen([*WATCH, *map(str, arguments)], stdout=subprocess.PIPE, text=True) as watching:
        try:
            yield watching
        finally:
            watching.kill()


# --- on a terminal -----------------------------------------------------------------------------------------


def test_keys_choose_sort_explain_and_quit_and_the_screen_follows_the_terminal_size(root: Path) -> None:
    with training(root, "two"), Screen([*WATCH, root]) as screen:
        screen.shows(r"^── two ─ running")
        screen.shows(r"^ val_loss +1 .*best 1 in epoch 3$")
        assert len(screen.lines) == 24 and max(map(len, screen.lines)) <= 80
        assert screen.lines[0].startswith(str(root)[-20:]) or "3 runs, 1 training" in screen.lines[0]
        assert re.search(r"^▶ two +running +4/20", screen.text, re.MULTILINE)
        assert re.search(r"^ epochs +4/20 +█+░+ +21 %", screen.text, re.MULTILINE)
        assert re.search(r"^ batches +3/10 ", screen.text, re.MULTILINE)
        assert re.search(r"^ loss +0\.125 ", screen.text, re.MULTILINE)
        assert re.search(r"^ resume point +version 8,", screen.text, re.MULTILINE)
        screen.press("s")
        screen.shows("sort: name")
        assert re.findall(r"^[▶ ] (one|two|three) ", screen.text, re.MULTILINE) == ["one", "three", "two"]
        screen.press("n")
        screen.shows("^▶ one(.|\n)*── one ─ ")
        screen.press("\x1b[B")
        screen.shows("^▶ three")
        screen.press("p\x1bOA")
        screen.shows("^▶ two")
        screen.press("?")
        screen.shows("previous run")
        screen.press("?")
        screen.shows("^▶ two")
        screen.resize(60, 12)
        screen.until(lambda screen: len(screen.lines) == 12 and "q quit" in screen.lines[-1])
        assert max(map(len, screen.lines)) <= 60
        assert not screen.is_plain()
        screen.press("q")
        assert screen.ends() == 0
        assert screen.is_plain()
        assert screen.written.endswith(b"\x1b[?25h\x1b[?1049l")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_a_signal_ends_it_with_the_terminal_as_it_was(root: Path, number: signal.Signals) -> None:
    with Screen([*WATCH, root]) as screen:
        screen.shows("3 runs")
        screen.process.send_signal(number)
        assert screen.ends() == 128 + number
        assert screen.is_plain()
        assert b"\x1b[?25h\x1b[?1049l" in screen.written
        assert b"Traceback" not in screen.written


def test_the_loss_of_the_terminal_ends_it(root: Path) -> None:
    with Screen([*WATCH, root]) as screen:
        screen.shows("3 runs")
        screen.hang_up()
        assert screen.process.wait(30) == 128 + signal.SIGHUP


def test_an_error_ends_it_with_the_terminal_as_it_was(root: Path) -> None:
    with Screen([*WATCH, root]) as screen:
        screen.shows("3 runs")
        manifest = root / "manifest.sqlite"
        manifest.rename(root / "old")
        with closing(sqlite3.connect(manifest)) as foreign:
            foreign.execute("CREATE TABLE somebodys (x)")
        assert screen.ends() == 1
        assert screen.is_plain()
        after = screen.written.partition(b"\x1b[?25h\x1b[?1049l")[2].decode()
        assert "ckptstore: " in after and "manifest.sqlite" in after and "Traceback" not in after


def test_a_stopped_process_gives_the_terminal_back_and_takes_it_again(root: Path) -> None:
    with Screen([], shell=True) as screen:
        screen.shows(r"^\$$")
        screen.press(" ".join(map(str, (*WATCH, root))) + "\n")
        screen.shows("^ disk ")
        assert not screen.is_plain()
        screen.press("\x1a")
        screen.shows(r"Stopped")
        assert b"\x1b[?25h\x1b[?1049l" in screen.written
        screen.press("stty -a; echo it is $?\n")
        screen.shows("it is 0")
        assert re.search(r"(?<!-)\bicanon\b", screen.text) and re.search(r"(?<!-)\becho\b", screen.text)
        screen.press("fg\n")
        screen.shows("q quit")
        screen.press("q")
        screen.until(lambda screen: screen.written.count(b"\x1b[?1049l") == 2)
        screen.press("exit\n")
        screen.ends()


def test_a_store_that_is_not_there_yet_old_locked_or_removed_is_waited_for(
    root: Path, tmp_path: Path
) -> None:
    later = tmp_path / "later"
    with Screen([*WATCH, later]) as screen:
        screen.shows("there is no store here yet: waiting for it")
        shutil.copytree(STORES / "0002", later)
        screen.shows("ckptstore upgrade")
        assert main(["upgrade", str(later)]) == 0
        screen.shows("2 runs")
        with closing(sqlite3.connect(later / "manifest.sqlite", isolation_level=None)) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            writer.execute("UPDATE runs SET name = name")
            os.utime(later / "manifest.sqlite")
            screen.shows("waiting for the store: another process is writing to it")
            assert re.search("^ disk ", screen.text, re.MULTILINE)
            screen.press("?")
            screen.shows("previous run")
            screen.press("?")
        screen.until(lambda screen: "waiting for the store" not in screen.text)
        shutil.rmtree(later)
        screen.shows("the store has been removed: waiting for it")
        shutil.copytree(root, later)
        screen.shows("3 runs")
        screen.press("q")
        assert screen.ends() == 0


def test_an_encoding_without_blocks_shows_ascii_and_no_name_acts_on_the_terminal(tmp_path: Path) -> None:
    root = tmp_path / f"store {NASTY}"
    with CheckpointStore(root) as store:
        save(store, 0, run="default", metrics={NASTY: 1.0}, monitor=(NASTY, "min"))
    with closing(sqlite3.connect(root / "manifest.sqlite")) as database, database:
        database.execute("UPDATE runs SET name = ?", (NASTY,))
    for environment in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {}):
        with Screen([*WATCH, root], environment=environment) as screen:
            screen.shows("^ disk ")
            screen.press("q")
            assert screen.ends() == 0
            assert screen.text.isascii() == bool(environment)
            assert r"n\x1b[31m\x9b2J" in screen.text
            assert not re.search(rb"\x1b\[31m|\x9b2J|\x07|\xe2\x80\xae", screen.written)


# --- elsewhere ---------------------------------------------------------------------------------------------


def test_once_prints_the_state_and_ends(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with training(root, "two"):
        assert main(["watch", str(root), "--once"]) == 0
        shown = capsys.readouterr().out
        assert re.search(r"^▶ two +running +4/20 ", shown, re.MULTILINE)
        assert " disk " in shown and "q quit" not in shown and "\x1b" not in shown
        assert main(["watch", str(root), "--once", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert main(["watch", str(root), "--json", "--run", "two"]) == 0
        alone = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in alone["runs"]] == ["two"]
    assert sorted(run["run"] for run in document["runs"]) == ["one", "three", "two"]
    assert document["store"] == str(root) and document["problem"] is None and document["disk"]["free"] > 0
    [two] = alone["runs"]
    shown = {name: two[name] for name in ("state", "epoch", "batch", "step", "phase", "monitor", "finished")}
    assert shown == {
        "state": "running",
        "epoch": 4,
        "batch": 2,
        "step": 43,
        "phase": "training",
        "monitor": "val_loss",
        "finished": 0.215,
    }
    assert two["metrics"] == {"loss": 0.125}
    for arguments in (["--once"], ["--json"]):
        assert main(["watch", str(root.parent / "none"), *arguments]) == 3
        assert main(["watch", str(root), "--run", "none", *arguments]) == 3
        assert main(["watch", str(STORES / "0001"), *arguments]) == 6
    assert main(["watch", __file__]) == 1
    assert "it is a file, not a directory" in capsys.readouterr().err
    assert not (root.parent / "none").exists()


def test_without_a_terminal_a_line_is_printed_for_each_change(root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    with printing(root) as watching:
        lines = lines_of(watching)
        first = [next(lines) for _ in range(3)]
        assert all(re.search(r"(one|two|three)  interrupted  epochs 4  ", line) for line in first), first
        with training(root, "two") as heartbeat:
            assert re.search(r"two  running  epochs 4/20  step 43  val_loss 1  version 8 saved ", next(lines))
            heartbeat.enter("validating")  # no change worth a line
            with CheckpointStore(root) as store:
                save(store, 4, run="three", step=50, metrics={"loss": 0.1, "val_loss": 0.5})
            assert re.search(r"three  interrupted  epochs 5  .*val_loss 0\.5  version 13 saved", next(lines))
        assert re.search(r"two  interrupted  ", next(lines))
        root.rename(moved)
        assert next(lines).endswith("the store has been removed: waiting for it")
        moved.rename(root)
        assert next(lines).endswith("the store can be read again")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 130


def test_json_with_an_interval_prints_a_document_for_each_change(root: Path) -> None:
    with printing(root, "--json", "--interval", "1") as watching:
        lines = lines_of(watching)
        states = {run["run"]: run["state"] for run in json.loads(next(lines))["runs"]}
        assert states == dict.fromkeys(("one", "two", "three"), "interrupted")
        with training(root, "one"):
            [running] = [run for run in json.loads(next(lines))["runs"] if run["state"] == "running"]
        assert (running["run"], running["step"]) == ("one", 43)
        assert {run["state"] for run in json.loads(next(lines))["runs"]} == {"interrupted"}


def test_it_ends_when_nobody_reads_what_it_prints(root: Path) -> None:
    with printing(root) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        watching.stdout.close()
        assert watching.wait(30) == 0


# --- what it costs -----------------------------------------------------------------------------------------


def test_a_store_that_does_not_change_is_not_asked(root: Path) -> None:
    asked: list[object] = []

    def note(connection: object) -> None:
        asked.append(connection)

    observer = StoreObserver(root)
    observer.read()
    event.listen(Engine, "begin", note)
    try:
        for _ in range(20):
            observer.look()
        assert asked == []
        with CheckpointStore(root) as store:
            save(store, 4, run="one", step=50)
            asked.clear()
            assert {run.run.latest.version for run in observer.look().runs if run.run.latest} == {13, 8, 12}
            assert asked
        asked.clear()
        observer.look()
        assert asked == []
        with training(root, "one"):
            assert any(run.run.state == "running" for run in observer.look().runs)
        assert not any(run.run.state == "running" for run in observer.look().runs)
    finally:
        event.remove(Engine, "begin", note)
        observer.close()


def test_a_training_that_is_killed_is_seen_by_the_next_look_though_no_file_changes(root: Path) -> None:
    beating = (
        "import pathlib, sys, time; from ckptstore.storage.heartbeat import Heartbeat; "
        "from ckptstore.storage.layout import Layout; "
        "beat = Heartbeat.begin(Layout(pathlib.Path(sys.argv[1])), 'one', 1); print('began', flush=True); "
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", beating, str(root)]
    with closing(StoreObserver(root, run="one")) as observer:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
            assert training.stdout is not None and training.stdout.readline() == "began\n"
            [observed] = observer.look().runs
            assert observed.run.state == "running"
            training.kill()
        [observed] = observer.look().runs
        assert observed.run.state == "interrupted"


def test_after_the_first_look_the_details_of_one_run_are_read_at_a_time(root: Path) -> None:
    read: list[str] = []
    observer = StoreObserver(root)
    observer.read()
    details = observer._read_details

    def noting(run: Any) -> Any:
        read.append(run.name)
        return details(run)

    observer._read_details = noting  # type: ignore[method-assign]
    with CheckpointStore(root) as store:
        for run in ("one", "two", "three"):
            save(store, 4, run=run, step=50)
    observer.look("two")
    assert len(read) == 1
    observer.look("two")
    observer.look("two")
    assert sorted(read) == ["one", "three", "two"] and "two" in read[:2]
    assert all(run.epochs[-1].epoch == 4 for run in observer.look("two").runs)
    observer.close()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_it_writes_nothing_and_takes_none_of_the_stores_locks(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "strace"
    trace = ["strace", "-f", "-qq", "-y", "-e", "trace=%file,%desc", "-o", str(log)]
    command = [*trace, *WATCH, str(root), "--json", "--interval", "1"]
    with (
        training(root, "one") as heartbeat,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching,
    ):
        lines = lines_of(watching)
        next(lines)
        with CheckpointStore(root) as store:
            save(store, 4, run="two", step=50)
        next(lines)
        heartbeat.enter("paused")
        next(lines)
        assert watching.stdout is not None
        watching.stdout.close()
        watching.wait(60)
    calls = [line for line in log.read_text().splitlines() if str(root) in line]
    assert any("manifest.sqlite" in call for call in calls)
    changing = re.compile(
        r"\b(write|pwrite64|writev|ftruncate|fallocate|fsync|fdatasync|rename\w*|unlink\w*|mkdir\w*|link\w*|symlink\w*"
        r"|chmod|fchmod\w*|utime\w*|flock)\(|O_(WRONLY|RDWR|CREAT|TRUNC)|F_(OFD_)?SETLK\w*, \{l_type=F_WRLCK"
    )
    assert [call for call in calls if changing.search(call)] == []
    assert not any("/locks" in call for call in calls)


def test_a_file_or_the_store_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.sqlite").write_bytes(b"")
    with closing(sqlite3.connect(tmp_path / "manifest.sqlite")) as foreign:
        foreign.execute("CREATE TABLE somebodys (x)")
    for path in (tmp_path, Path(__file__)):
        with pytest.raises(NotAStoreError):
            StoreObserver(path).look()


# --- a real training ---------------------------------------------------------------------------------------

TRAINING = """
import sys, time
import keras, numpy
import ckptstore

class Slow(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        time.sleep(0.1)

keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("adam", "mse")
data = numpy.random.default_rng(0).random((80, 4)), numpy.ones((80, 1))
saving = ckptstore.StoreCheckpoint(sys.argv[1], monitor="val_loss")
model.fit(*data, batch_size=4, epochs=3, verbose=0, validation_data=data, callbacks=[Slow(), saving])
"""


@pytest.mark.backend
@pytest.mark.jax_is_enough
@pytest.mark.slow
def test_a_training_that_is_killed_started_again_and_done_is_shown_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "store"
    train = [sys.executable, "-c", TRAINING, str(root)]
    with Screen([*WATCH, root]) as screen:
        screen.shows("there is no store here yet")
        with subprocess.Popen(train) as training:
            screen.shows(r"^▶ default +running +1/3 +\d+ s ", seconds=120)
            screen.shows(r"^ batches +\d+/20 .* steps/s, step 2\d")
            screen.shows(r"^ best +version \d+, \d+ s old, val_loss ")
            training.kill()
        screen.shows(r"^▶ default +interrupted +1/3 ")
        screen.shows(r"^ attempts +1 \(0 restarts\)")
        screen.shows(r"^ resume point +version \d+")
        with subprocess.Popen(train) as training:
            screen.shows(r"^▶ default +running +2/3 ", seconds=120)
            screen.shows(rf"^ attempts +2 \(1 restart\); the last began .* process {training.pid}$")
            assert training.wait(120) == 0
        screen.shows(r"^▶ default +finished +3/3 ")
        screen.shows(r"^ epochs +3/3 +█+ 100 %")
        screen.shows(r"^ ended +\d+ s ago: finished$")
        screen.shows(r"^ saving +[\d.]+ % of the time, ")
        screen.press("q")
        assert screen.ends() == 0
