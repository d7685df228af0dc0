"""Runs the command as ``python -m ckptstore``, for environments whose scripts are not on the path."""

import sys

from ckptstore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
