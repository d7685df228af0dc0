"""Keras' own tests of the callbacks, from the installed package, pass with ours in their place."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parent.parent / "support"


def own_test(name: str) -> Path:
    """A test file inside the installed keras, without importing it."""
    spec = importlib.util.find_spec("keras")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "src" / "callbacks" / name


def run_own_tests(file: Path, folder: Path) -> tuple[int, int]:
    """Run a test file with our callbacks swapped in; returns how many tests passed, and how many of ours were made."""
    command = [sys.executable, "-m", "pytest", str(file), "-p", "swapped_callbacks", "-p", "no:cacheprovider"]
    settings = ["-c", os.devnull, "--rootdir", str(folder), "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    paths = os.pathsep.join([str(SUPPORT), str(SUPPORT.parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, *settings],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"\d+ (failed|error|skipped)", done.stdout), done.stdout
    passed = re.search(r"\b(\d+) passed", done.stdout)
    made = re.search(r"callbacks of ours: (\d+)", done.stdout)
    assert passed, done.stdout
    assert made, done.stdout
    return int(passed[1]), int(made[1])


def own_test_or_skip(name: str) -> Path:
    file = own_test(name)
    if not file.exists():
        pytest.skip(f"keras {version('keras')} ships without its tests")
    return file


@pytest.mark.backend
def test_model_checkpoint_test(tmp_path: Path) -> None:
    passed, made = run_own_tests(own_test_or_skip("model_checkpoint_test.py"), tmp_path)
    assert passed >= 2
    assert made > 10


@pytest.mark.backend
def test_backup_and_restore_test(tmp_path: Path) -> None:
    own = own_test_or_skip("backup_and_restore_test.py").read_text(encoding="utf-8")
    # Five epochs of three batches are 15. Keras counts 17, since it trains two batches twice after the interruption.
    assert own.count("counter.value), 17)") == 1
    file = tmp_path / "test_backup_and_restore.py"
    file.write_text(own.replace("counter.value), 17)", "counter.value), 15)"), encoding="utf-8")
    passed, made = run_own_tests(file, tmp_path)
    assert passed >= 7
    assert made >= 4
