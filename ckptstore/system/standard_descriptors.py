"""Keeps the descriptors 0, 1 and 2 away from files of a store.

A program that is started with a closed stderr, as some daemons are, gets descriptor 2 for the next file that it opens.
Libraries that print to stderr would then write into that file, and a child process would find another one in its place.
"""

from __future__ import annotations

import os

_HIGHEST = 2


def occupy() -> None:
    """Open the null device at each of the descriptors 0, 1 and 2 that is closed, for the life of the process."""
    descriptor = -1
    while descriptor < _HIGHEST:
        try:
            descriptor = os.open(os.devnull, os.O_RDWR)
        except OSError:
            return  # no null device, or no descriptors left: what is opened next reports that
    if descriptor > _HIGHEST:
        os.close(descriptor)
