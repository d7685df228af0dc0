"""The command attempts, and the lines about attempts of show, history and report."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from test_commands import Ran

from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save
from manifests import new_attempt

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *arguments: Ran(capsys, *arguments)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    with CheckpointStore(root) as opened:
        attempts = opened._manifest.attempts
        save(opened, 1, run="a", metrics={"loss": 1.0})
        attempts.begin(new_attempt("a", started_at=BEGAN, host="node7", git_commit="3f2a9c1d0e"))
        attempts.end("a", 1, reason="oom", ended_at=BEGAN + timedelta(minutes=90), signal="SIGKILL")
        now = datetime.now(UTC) - timedelta(seconds=1)
        attempts.begin(new_attempt("a", started_at=now, git_dirty=False, command=("<b>", "\x1b[31m")))
        opened._manifest.events.add("resumed", run="a", version=1, detail={"epoch": 1, "batch": None})
        attempts.begin(new_attempt("b", started_at=BEGAN))
        attempts.end(
            "b", 1, reason="exception", detail={"type": "ValueError", "message": "no\nrow" + "x" * 90}
        )
        attempts.add_facts("a", 2, {"resumed_from": 1, "batches_lost": 37})
        save(opened, 2, run="a", metrics={"loss": 0.5})
    return root


def test_attempts_are_shown_as_a_table_and_as_json(run: Any, store: Path) -> None:
    ran = run("attempts", store, "--run", "a")
    assert ran.code == 0 and ran.err == ""
    first, second = (line.split() for line in ran.out.splitlines()[1:])
    assert first[:2] == ["a", "1"] and " ".join(first[4:]) == "90 min out of memory (SIGKILL) 3f2a9c1+ node7"
    assert second[:2] == ["a", "2"] and second[-5:] == ["running", "1", "37", "3f2a9c1", "node7"]
    document = run("attempts", store, "--json").json
    assert [(entry["run"], entry["attempt"], entry["reason"]) for entry in document] == [
        ("a", 1, "oom"), ("b", 1, "exception"), ("a", 2, None),
    ]  # fmt: skip
    assert document[0]["versions"]["keras"] == "3.15.0" and document[0]["signal"] == "SIGKILL"
    assert len(run("attempts", store, "--last", "1", "--json").json) == 1
    line = next(line for line in run("attempts", store).out.splitlines() if line.startswith("b"))
    assert "ValueError: no\\nrowx" in line and "..." in line


def test_runs_without_attempts(run: Any, tmp_path: Path, store: Path) -> None:
    CheckpointStore(tmp_path / "empty").close()
    ran = run("attempts", tmp_path / "empty")
    assert (ran.code, ran.out) == (0, "") and "no attempts are recorded" in ran.err
    assert run("attempts", tmp_path / "empty", "--json").json == []
    assert run("attempts", store, "--run", "c").code == 3
    assert run("attempts", store, "--last", "0").code == 2


def test_show_and_history_tell_of_attempts(run: Any, store: Path) -> None:
    shown = run("show", store, "2").out
    assert "attempt    2, of commit 3f2a9c1\n" in shown
    assert run("show", store, "2", "--json").json["attempt"] == 2
    assert "attempt 1 had ended: out of memory (SIGKILL)" in run("history", store, "--run", "a").err


def test_a_report_has_the_attempts_and_shows_them_as_they_are(run: Any, store: Path, tmp_path: Path) -> None:
    assert run("report", store, tmp_path / "r.html", "--run", "a").code == 0
    page = (tmp_path / "r.html").read_text()
    assert "<h3>Attempts</h3>" in page and "out of memory (SIGKILL)" in page
    assert "&lt;b&gt;" in page and "<b>" not in page and "\x1b" not in page


def test_the_view_for_sql_has_the_attempts(store: Path) -> None:
    with closing(sqlite3.connect(store / "manifest.sqlite")) as database:
        query = "SELECT run, attempt, reason, resumed_from, batches_lost, git_dirty FROM attempt_list ORDER BY 1, 2"
        assert database.execute(query).fetchall() == [
            ("a", 1, "oom", None, None, 1), ("a", 2, None, 1, 37, 0), ("b", 1, "exception", None, None, 1),
        ]  # fmt: skip
