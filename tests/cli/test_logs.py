"""`ckptstore logs`: finds the logs of attempts and starts, and prints them as one text."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ckptstore.storage.log_files import create_log, rotate
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save
from manifests import new_attempt


class Printed:
    """Output and exit code of one run of the command."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "ckptstore", "logs", *map(str, arguments)],
            cwd=folder,
            capture_output=True,
            timeout=60,
            check=False,
        )
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two attempts at one run, one at another, a start without a fit, and logs of different age."""
    root = tmp_path / "store"
    with CheckpointStore(root) as store:
        save(store, 5, run="a")
        for run in ("a", "a", "b"):
            store._manifest.attempts.begin(new_attempt(run), has_own_log=True)
    texts = {"a/1": "first\n", "b/1": "other\n", "a/2": "second\n", ".starts/20260101T000000Z-ab": "no fit\n"}
    for age, (name, text) in enumerate(texts.items()):
        path = root / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (1000 + age, 1000 + age))
    return root


def test_the_newest_log_is_printed_and_others_are_chosen(tmp_path: Path, store: Path) -> None:
    assert Printed(tmp_path, "store").out == b"no fit\n"
    assert Printed(tmp_path, "store", "--run", "a").out == b"second\n"
    assert Printed(tmp_path, "store", "--run", "a", "--attempt", 1).out == b"first\n"
    ambiguous = Printed(tmp_path, "store", "--attempt", 1)
    assert (ambiguous.code, "runs with an attempt 1: a, b" in ambiguous.err) == (2, True)
    assert Printed(tmp_path, "store", "--attempt", 2).out == b"second\n"


def test_the_logs_are_listed(tmp_path: Path, store: Path) -> None:
    listed = Printed(tmp_path, "store", "--json").json
    assert [(log["run"], log["attempt"]) for log in listed] == [("a", 1), ("b", 1), ("a", 2), (None, None)]
    assert listed[0]["path"] == str(store / "logs" / "a" / "1.log")
    assert listed[0]["written_at"] == datetime.fromtimestamp(1000, UTC).isoformat()
    lines = Printed(tmp_path, "store", "--list").out.decode().splitlines()
    assert lines[0].split() == ["run", "attempt", "size", "last", "written", "file"] and len(lines) == 5


def test_what_is_not_there_is_exit_code_3_with_a_hint(tmp_path: Path, store: Path) -> None:
    for arguments in (("store", "--attempt", 7), ("store", "--run", "c")):
        printed = Printed(tmp_path, *arguments)
        assert (printed.code, printed.out, "ckptstore logs" in printed.err) == (3, b"", True)
    assert Printed(tmp_path, "nowhere").code == 3


def test_logs_are_read_though_the_manifest_is_not(tmp_path: Path, store: Path) -> None:
    (store / "manifest.sqlite").write_bytes(b"no database at all " * 1000)
    assert Printed(tmp_path, "store", "--run", "a", "--attempt", 1).out == b"first\n"


def test_attempts_of_one_process_share_a_log_and_one_may_lie_elsewhere(tmp_path: Path, store: Path) -> None:
    elsewhere = tmp_path / "elsewhere.log"
    elsewhere.write_text("on another disk\n")
    with CheckpointStore(store) as writer:
        number = writer._manifest.attempts.begin(new_attempt("a"))
        writer._manifest.attempts.add_facts("a", number, {"log": elsewhere})
    assert Printed(tmp_path, "store", "--run", "a", "--attempt", number).out == b"on another disk\n"


def test_a_long_log_is_one_text(tmp_path: Path, store: Path) -> None:
    path = store / "logs" / "b" / "2.log"
    descriptor = create_log(path)
    text = b"".join(b"%07d\n" % number for number in range(100_000))
    os.write(descriptor, text)
    while rotate(path, descriptor, 128 << 10):
        pass
    os.close(descriptor)
    assert Printed(tmp_path, "store", "--run", "b", "--attempt", 2).out == text


def test_a_terminal_gets_colours_and_progress_bars_and_nothing_else_that_acts_on_it(
    tmp_path: Path, store: Path
) -> None:
    text = "\x1b[32mgreen\x1b[0m 1/2\r2/2 \x1b]0;title\x07\x1b[2J end\n"
    (store / "logs" / "a" / "2.log").write_text(text)
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptstore", "logs", "store", "--run", "a", "--attempt", "2"],
        cwd=tmp_path,
        stdout=side,
    )
    assert process.wait(timeout=60) == 0
    os.close(side)
    shown = os.read(main, 1000).decode()
    os.close(main)
    assert shown == "\x1b[32mgreen\x1b[0m 1/2\r2/2 \\x1b]0;title\\x07\\x1b[2J end\r\n"
