"""Runs the command line in this process, and tells its peak memory on a last line of stderr."""

from __future__ import annotations

import sys

import bench_process

from ckptstore.cli import main

if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stdout.flush()
        print(bench_process.peak_bytes(), file=sys.stderr)
