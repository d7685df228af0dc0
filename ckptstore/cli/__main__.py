"""Runs the command as ``python -m ckptstore.cli``."""

import sys

from ckptstore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
