"""Loops by hand in two processes: each saves and resumes with `open_in_job`, and goes on to the bit."""

from __future__ import annotations

from pathlib import Path

import keras

import ckptstore
from process_groups import results_of

BACKEND = keras.backend.backend()


def test_a_loop_by_hand_in_two_processes_resumes_to_the_bit_on_both(tmp_path: Path) -> None:
    *processes, _made = results_of(BACKEND, tmp_path, "loops_in_jobs:resumed")
    for found in processes:
        assert "error" not in found, found["error"]
        assert found["began"]
        assert (found["resumed"], found["restored"]) == (1, 1)
        assert found["exact"]
        assert found["exact again"]
        assert found["draws"]
        assert found["divided"] == ""
        assert found["left last"]
        assert found["closed"] == ["it is closed"] * 3
    assert processes[0]["saved"] == processes[1]["saved"]
    assert processes[0]["saved"][:2] == [1, "sharded"]
    (first, _), (second, text) = (found["refused"] for found in processes)
    assert (first, second) == ("CheckpointNotFoundError", "ResumeRefusedError")
    assert "no-such-tag" in text
    # One process cannot prepare its part: the others are told so at once, and all count the same saves.
    for process in (0, 1):
        kinds, texts, seconds = zip(*(found["unprepared"][process] for found in processes), strict=True)
        assert kinds[process] == "InvalidArgumentError"
        assert kinds[1 - process] == "SaveAbandonedError"
        assert f"was abandoned: process {process}: " in texts[1 - process]
        assert max(seconds) < 30
    assert [found["queries"] for found in processes] == [[True] * 3, [False, False, True]]
    assert [found["after"] for found in processes] == [3, 3]  # 2 was reserved for one that was abandoned
    assert processes[1]["left"][0] == "PeerFailedError"
    assert "process 0 has given up: OSError: the data is gone" in processes[1]["left"][1]
    with ckptstore.CheckpointStore(tmp_path / "store") as store:
        assert store.verify() == []


def test_a_process_by_itself_opens_an_ordinary_store(tmp_path: Path) -> None:
    with ckptstore.open_in_job(tmp_path / "store") as store:
        assert type(store) is ckptstore.CheckpointStore
