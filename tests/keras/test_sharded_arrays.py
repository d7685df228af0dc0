"""Tests of arrays on several devices of one process: their copies, where a restore puts them, what a payload holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

PROGRAM = Path(__file__).parent.parent / "support" / "sharded_checks.py"
pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="is JAX's")


@pytest.fixture(scope="module")
def outcome() -> dict[str, str | None]:
    """The error of each check, or None, in one process of eight devices."""
    command = [sys.executable, PROGRAM]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", re.findall(r"^@check\ndef (\w+)", PROGRAM.read_text(), re.MULTILINE))
def test_on_eight_devices(outcome: dict[str, str | None], name: str) -> None:
    assert outcome[name] is None, outcome[name]
