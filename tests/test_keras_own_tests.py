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

TESTS = Path(__file__).parent
BACKENDS = [name for name in ("jax", "torch") if importlib.util.find_spec(name)]


def own_test(name: str) -> Path:
    """A test file inside the installed keras, without importing it."""
    spec = importlib.util.find_spec("keras")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "src" / "callbacks" / name


@pytest.mark.backend
@pytest.mark.parametrize("backend", BACKENDS)
def test_model_checkpoint_test(backend: str, tmp_path: Path) -> None:
    if os.environ["KERAS_BACKEND"] != backend:
        pytest.skip(f"runs when the suite runs on {backend}")
    file = own_test("model_checkpoint_test.py")
    if not file.exists():
        pytest.skip(f"keras {version('keras')} ships without its tests")
    command = [sys.executable, "-m", "pytest", str(file), "-p", "swapped_callbacks", "-p", "no:cacheprovider"]
    settings = ["-c", os.devnull, "--rootdir", str(tmp_path), "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, *settings],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"\b(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= 2
    assert not re.search(r"\d+ (failed|error|skipped)", done.stdout), done.stdout
    made = re.search(r"callbacks of ours: (\d+)", done.stdout)
    assert made, done.stdout
    assert int(made[1]) > 10
