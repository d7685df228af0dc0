"""Shell completion of commands, options and refs; progress bars of commands that read payloads."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ckptstore.cli import output
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save
from terminals import AT_ONCE, all_of

# A command that never shows progress, however slow a loaded machine makes it.
NEVER_SHOWN = AT_ONCE.replace("PROGRESS_DELAY_S = 0.0", "PROGRESS_DELAY_S = 3600.0")
RUN = "import sys; from ckptstore.cli.main import main; sys.exit(main([]))"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("completion") / "store"
    with CheckpointStore(root) as store:
        save(store, 1, metrics={"val_loss": 1.0}, tags=["production"])
        save(store, 2, metrics={"val_loss": 0.5})
    return root


def completed(*words: object) -> list[str]:
    """Return the completions that bash gets for the last of these words."""
    environment = {
        **os.environ,
        "_CKPTSTORE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(map(str, ("ckptstore", *words))),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env={**os.environ, "_CKPTSTORE_COMPLETE": f"{shell}_source"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "_ckptstore_completion" in done.stdout and f"{shell}_complete" in done.stdout


def test_commands_options_and_refs(store: Path) -> None:
    assert completed("ex") == ["export"]
    assert "--limit" in completed("ls", store, "--li")
    assert completed("show", store, "be") == ["best:val_loss"]
    assert completed("export", store, "pro") == ["production"]
    assert completed("pin", store, "") == ["production", "latest", "resume-point", "best:val_loss", "2", "1"]
    assert completed("show", store / "none", "") == [], "no store, no refs, and no noise"


@pytest.mark.parametrize("command", ["verify", "export", "copy", "import", "diff"])
def test_progress_is_shown_on_a_terminal(store: Path, tmp_path: Path, command: str) -> None:
    arguments = {
        "verify": [store],
        "export": [store, "1", tmp_path / "new.keras"],
        "copy": [store, "1", tmp_path / "new"],
        "import": [tmp_path / "new", tmp_path / "x.keras"],
        "diff": [store, "1", "2"],
    }[command]
    with CheckpointStore(store, read_only=True) as opened:
        opened.export(1, tmp_path / "x.keras")
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, command, *map(str, arguments), "--json"],
        stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}, timeout=60, check=True,
    )  # fmt: skip
    os.close(theirs)
    shown = all_of(ours)
    assert command.encode() in shown and b"kB" in shown, shown
    assert re.search(rb"0:\d\d:\d\d", shown), f"the time left, in {shown!r}"
    assert b"kB" not in done.stdout


def test_short_work_shows_no_progress(store: Path) -> None:
    assert output.PROGRESS_DELAY_S == 1.0
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", NEVER_SHOWN, "verify", str(store)],
        stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}, timeout=60, check=True,
    )  # fmt: skip
    os.write(theirs, b"end")
    os.close(theirs)
    assert all_of(ours) == b"end"
