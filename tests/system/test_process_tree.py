"""Descendants, sessions and holders of files, among real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.system import process_tree
from ckptstore.system.oom_kills import oom_counters, was_oom_kill

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")

# Prints the ids of a child in its own session and of that one's child, and waits.
NESTED = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         start_new_session=True, text=True)
print(os.getpid(), child.pid, child.stdout.readline(), flush=True)
sys.stdin.read()
"""
INNER = "import os, subprocess; print(subprocess.Popen(['sleep', '60'], stdout=-3).pid, flush=True); input()"


@pytest.fixture
def nested() -> Iterator[list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", NESTED, INNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        yield pids
        for pid in pids[::-1]:
            os.kill(pid, 9)


def test_descendants_are_found_in_any_session(nested: list[int]) -> None:
    top, child, grandchild = nested
    found = {process.pid for process in process_tree.related(top, None)}
    assert found == {child, grandchild}
    assert {process.pid for process in process_tree.related(top, child)} == {child, grandchild}
    assert process_tree.descends_from(grandchild, top) and process_tree.descends_from(grandchild, os.getpid())
    assert not process_tree.descends_from(top, grandchild)
    assert "sleep 60" in process_tree.command_of(grandchild)


def test_the_members_of_a_session_are_found_without_their_parents(nested: list[int]) -> None:
    _, child, grandchild = nested
    assert {process.pid for process in process_tree.related(grandchild, child)} == {child}


def test_the_holders_of_a_file_are_found_by_the_file_itself(tmp_path: Path, nested: list[int]) -> None:
    path = tmp_path / "locks" / "a.lock"
    path.parent.mkdir()
    with path.open("w"):
        assert [process.pid for process in process_tree.holders_of(path.stat())] == [os.getpid()]
        assert process_tree.has_open(os.getpid(), path.parent, ".lock")
        path.rename(tmp_path / "renamed")
        assert process_tree.holders_of((tmp_path / "renamed").stat())
        assert not process_tree.has_open(os.getpid(), path.parent, ".lock")
    assert process_tree.holders_of((tmp_path / "renamed").stat()) == []


def test_a_process_that_is_gone_is_nobody() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert process_tree.look_at(process.pid) is None
    assert process_tree.command_of(process.pid) == ""
    assert not process_tree.descends_from(process.pid, os.getpid())


def test_a_counter_that_grew_is_a_kill_for_want_of_memory() -> None:
    counters = oom_counters()
    assert counters, "there is at least that of the machine"
    assert not was_oom_kill(counters)
    grown = {file: count - 1 for file, count in counters.items()}
    assert was_oom_kill(grown)
    groups = [file for file in counters if file != "/proc/vmstat"]
    if groups:  # the kill of another container is not ours
        assert not was_oom_kill({**counters, "/proc/vmstat": -1})
