"""Runs the command line in this process, and prints its peak memory on the last line of stderr."""

from __future__ import annotations

import sys

from bench import process_cost
from ckptstore.cli.main import main

if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stdout.flush()
        print(process_cost.peak_bytes(), file=sys.stderr)
