"""SIGTERM under `jax.distributed`, whose service catches it outside Python: the fit is saved and ends all the same."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import pytest

PROGRAM = Path(__file__).parent.parent / "support" / "preempted_fit.py"


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the service is JAX's")
def test_a_fit_under_jax_distributed_saves_and_ends_at_sigterm(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, PROGRAM, tmp_path / "store", str(port)],
            env={**os.environ, "KERAS_BACKEND": "jax"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    first = run()
    assert first.returncode == 75, first.stderr
    assert "sent" in first.stdout.split()
    assert "trained" not in first.stdout.split()
    assert "SIGTERM received, training stops" in first.stdout + first.stderr
    again = run()
    assert again.returncode == 0, again.stderr
    assert "after epoch 1, batch 3" in again.stdout + again.stderr
    # Behind the fit JAX's own handler is there again, and lets the process live.
    assert again.stdout.split()[-2:] == ["trained", "alive"]
