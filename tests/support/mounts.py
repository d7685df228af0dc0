"""File systems that are mounted for a test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, *options: object, by: str = "mount") -> Iterator[Path]:
    """Mount something for the block, or skip the test where that is not to be had."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        run_or_fail(by, *options, place)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount this here: {getattr(error, 'stderr', None) or error}")
    try:
        yield place
    finally:
        run_or_fail("umount", place)


def run_or_fail(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    return done.stdout.strip()
