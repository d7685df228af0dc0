"""Mounts file systems for tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(directory: Path, *options: object, by: str = "mount") -> Iterator[Path]:
    """Mount a file system for the block, or skip the test where mounting is not possible."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        run_or_fail(by, *options, directory)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount this here: {getattr(error, 'stderr', None) or error}")
    try:
        yield directory
    finally:
        run_or_fail("umount", directory)


def run_or_fail(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    return done.stdout.strip()
