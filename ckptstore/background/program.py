"""The command that starts the worker program: this interpreter, without what a user has set for other programs.

The worker must import the same packages as the trainer, and nothing else of the user's: no ``sitecustomize.py`` beside
the script, no module there that has the name of one of Python's own. So it is started without ``PYTHONPATH``, and gets
the trainer's `sys.path` when it runs already.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

# An environment variable: "thread" saves in a thread of the training process instead of a process; "process" starts
# `sys.executable` even if its name is not that of a Python interpreter.
WRITER_VARIABLE = "CKPTSTORE_WRITER"
PROGRAM = "ckptstore.background"

_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1])['path']; from {}.__main__ import main; main()"
)
_INTERPRETER = re.compile(r"(python|pypy|graalpy)", re.IGNORECASE)
# Some libraries start a thread for each core when they are imported; these variables keep them to one.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# Variables of Python that say where its own files are, and how it encodes names. All others are left out: they may
# trace, profile, or turn warnings into errors.
_KEPT_VARIABLES = frozenset({
    "PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "PYTHONUTF8", "PYTHONCOERCECLOCALE",
    "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONMALLOC",
})  # fmt: skip


def can_start() -> bool:
    """Return True if this platform has the system calls that a worker process needs."""
    return all(hasattr(os, name) for name in ("memfd_create", "eventfd", "pidfd_open"))


def refusal() -> str | None:
    """Return why no worker process can be started here, or None if it can be tried.

    In a frozen application, and in a program that embeds Python, `sys.executable` may be that program. It must not be
    started again: it would train a second time, or open another window.
    """
    if not can_start():
        return "this platform has no memfd or pidfd"
    if getattr(sys, "frozen", False):
        return "this is a frozen application, which has no interpreter of its own"
    if not sys.executable:
        return "sys.executable, the path of this interpreter, is not known"
    if not _INTERPRETER.match(Path(sys.executable).name) and os.environ.get(WRITER_VARIABLE) != "process":
        return (
            f"{sys.executable} does not have the name of a Python interpreter; "
            f"if it is one: {WRITER_VARIABLE}=process"
        )
    return None


def command(config: dict[str, Any], *, program: str = PROGRAM) -> list[str]:
    """Return the command that starts the worker, or another program of this package.

    Args:
        config: JSON values for the program; the import path of this process is added, as ``"path"``.
        program: The package whose ``__main__.main`` is run.
    """
    import json

    flags = sys.flags
    options = ["-P"]
    options += ["-s"] if flags.no_user_site else []
    options += ["-E"] if flags.ignore_environment else []
    options += ["-X", "utf8"] if flags.utf8_mode else []
    return [
        sys.executable,
        *options,
        "-c",
        _CODE.format(program),
        json.dumps({**config, "path": _import_path()}),
    ]


def _import_path() -> list[str]:
    """Return the trainer's import path, absolute, with Python's own modules first."""
    entries = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    own = [entry for entry in entries if entry in (library, os.path.join(library, "lib-dynload"))]  # noqa: PTH118
    return list(dict.fromkeys([*own, *entries]))


def environment() -> dict[str, str]:
    """Return the environment of the worker."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON") or name in _KEPT_VARIABLES
    }
    return {**kept, **_ONE_THREAD, "PYTHONFAULTHANDLER": "1"}
