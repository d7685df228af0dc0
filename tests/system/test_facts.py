"""Facts about a process: no secret among them, and git asked with a limit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckptstore.system.facts import command, versions
from ckptstore.system.facts.environment import variables
from ckptstore.system.facts.git import GitFacts, GitQuestion, ask_git
from ckptstore.system.facts.secrets import is_secret, without_passwords, without_secrets
from ckptstore.system.processes import process_state


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--password", "x", "a"], ["--password", "***", "a"]),
        (["--token=x", "--lr=1"], ["--token=***", "--lr=1"]),
        (["--hfToken", "x"], ["--hfToken", "***"]),
        (["WANDB_API_KEY=x", "loader.secret=y"], ["WANDB_API_KEY=***", "loader.secret=***"]),
        (["--api-key", "--verbose"], ["--api-key", "--verbose"]),
        (["--tokenizer", "bpe", "--key-dim", "64"], ["--tokenizer", "bpe", "--key-dim", "***"]),
        (["s3://me:pw@host/x", "--h=http://a:b@c"], ["s3://me:***@host/x", "--h=http://a:***@c"]),
        (["-H", "Authorization: Bearer abcdefgh123"], ["-H", "Authorization: Bearer ***"]),
        (
            ["https://h/x?a=1&token=y&b=2", "https://h/?sig=x"],
            ["https://h/x?a=1&token=***&b=2", "https://h/?sig=***"],
        ),
        (
            ["sh", "-c", "env HF_TOKEN=x python t.py --db-password y --lr 1"],
            ["sh", "-c", "env HF_TOKEN=*** python t.py --db-password *** --lr 1"],
        ),
        (["git clone https://ghp_" + 30 * "x" + "@github.com/a"], ["git clone https://***@github.com/a"]),
        (
            ["{'api_key': 'x', 'key': 'loss'}", "tokens: 7"],
            ["{'api_key': '***', 'key': 'loss'}", "tokens: 7"],
        ),
    ],
)
def test_values_of_secret_options_are_hidden(given: list[str], shown: list[str]) -> None:
    assert list(without_secrets(given)) == shown


@pytest.mark.parametrize("piece", ["a-", "--a.", "http://", "'a'", "?a", "A_"])
def test_a_long_text_is_looked_through_in_little_time(piece: str) -> None:
    began = time.process_time()
    without_passwords(piece * 50_000)
    assert time.process_time() - began < 2


def test_only_variables_of_the_list_are_recorded() -> None:
    environment = {
        "KERAS_BACKEND": "jax", "SLURM_JOB_ID": "7", "SLURM_JWT": "x", "AWS_SECRET_ACCESS_KEY": "x", "HOME": "/root",
        "JAX_PLATFORMS": "cpu", "JAX_AUTH_TOKEN": "x", "XLA_FLAGS": "x" * 900, "PYTHONPATH": "a\udcffb",
    }  # fmt: skip
    found = variables(environment)
    assert found.keys() == {"KERAS_BACKEND", "SLURM_JOB_ID", "JAX_PLATFORMS", "XLA_FLAGS", "PYTHONPATH"}
    assert len(found["XLA_FLAGS"]) < 600 and found["PYTHONPATH"] == "a\\udcffb"
    assert not any(map(is_secret, found))


def test_a_command_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "x" * 5000, *["a"] * 600, "b\udcff"])
    found = command.command_line()
    assert found[0] == "python" and len(found[2]) < 1100 and found[-1] == "... (104 more)"
    "".join(found).encode()


def test_nothing_is_imported_for_the_versions() -> None:
    program = (
        "import sys; from ckptstore.system.facts import versions\n"
        "print(sorted(versions.versions()), versions.devices(), 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "['ckptstore', 'platform', 'python'] () False\n"


def test_a_broken_backend_has_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "backend_name", lambda: "jax")
    monkeypatch.setitem(sys.modules, "jax", object())  # type: ignore[arg-type]
    assert versions.devices() == ()


# --- git -----------------------------------------------------------------------------------------------


@pytest.fixture
def path_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a program named git is found first."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "git"


def is_alive(pid: str) -> bool:
    return process_state(int(pid), None) != "gone"


def fake(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_outside_of_a_repository_nothing_is_known(tmp_path: Path) -> None:
    assert GitQuestion(str(tmp_path)).answer(20) == GitFacts()
    assert GitQuestion(str(tmp_path / "gone")).answer(20) == GitFacts()


def test_no_git_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert GitQuestion(str(tmp_path)).answer(20) == GitFacts()


def test_git_is_told_to_take_no_lock_and_to_run_nothing_else(path_of_git: Path) -> None:
    told = path_of_git.parent / "told"
    fake(path_of_git, f'echo "$GIT_OPTIONAL_LOCKS $GIT_TERMINAL_PROMPT $@" >> {told}; echo abc')
    assert GitQuestion("/").answer(20) == GitFacts(commit="abc", dirty=True, diff=b"abc\n")
    first, second = told.read_text().splitlines()
    assert first.startswith("0 0 -c core.fsmonitor=false") and "rev-parse" in first
    assert "--no-ext-diff --no-textconv" in second


def test_a_git_that_hangs_is_killed_with_what_it_started(path_of_git: Path) -> None:
    pids = path_of_git.parent / "pids"
    fake(path_of_git, f"sleep 600 & echo $! $$ > {pids}; wait")
    began = time.monotonic()
    question = GitQuestion("/", limit_s=0.5)
    assert question.answer() is None and time.monotonic() - began < 0.4
    answer = question.answer(20)
    assert answer is not None and answer.commit is None and answer.note == "git did not answer within 0.5 s"
    until = time.monotonic() + 10
    while any(map(is_alive, pids.read_text().split())):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_git_is_asked_once_in_a_process(path_of_git: Path) -> None:
    asked = path_of_git.parent / "asked"
    fake(path_of_git, f"echo x >> {asked}; exit 1")
    for _ in range(3):
        assert ask_git(str(path_of_git.parent)).answer(20) == GitFacts()
    assert asked.read_text() == "x\n"
