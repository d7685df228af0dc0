"""A process that is interrupted while it saves, and continues, blocks nobody and has lost nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save

TOOLS = Path(__file__).resolve().parent.parent.parent / "tools"


SAVES = """
from crash import interrupts
result = interrupts.interrupt_saves(stride=43, most=60)
print(result.interrupts, *result.violations)
"""


@pytest.mark.slow
def test_an_interrupt_at_any_call_of_a_save_blocks_nobody() -> None:
    """At one in so many; `tools/crash interrupts` takes all of them.

    In a process of its own: an interrupt inside a library's own locks (filelock's, for forks) may leave these taken.
    """
    done = subprocess.run(
        [sys.executable, "-c", SAVES], cwd=TOOLS, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.stdout == "60\n", done.stdout + done.stderr


@pytest.mark.parametrize("writes", [False, True])
def test_an_interrupted_statement_holds_no_lock(tmp_path: Path, writes: bool) -> None:
    with CheckpointStore(tmp_path) as store:
        for seed in range(1, 4):
            save(store, seed)
        transactions = store._manifest._transactions
        begun = transactions.writing("test") if writes else transactions.reading()
        # The traceback, and so the statement, lives as long as `interrupted` does, as it would in a notebook.
        with pytest.raises(KeyboardInterrupt) as interrupted, begun as connection:
            rows = connection.exec_driver_sql("SELECT version FROM checkpoints")
            assert rows.fetchone() is not None
            raise KeyboardInterrupt
        with closing(sqlite3.connect(tmp_path / "manifest.sqlite", timeout=0, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            other.execute("ROLLBACK")
        assert interrupted.traceback
        assert save(store, 4).epoch == 4
