"""The warm process that children are forked from, since their imports would cost more than their work.

Python starts one such server for a process, does not give it this process's module path, and ignores modules that it
does not find. Here the server gets the path, and is replaced when a later test needs more modules.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

CONTEXT = multiprocessing.get_context("forkserver")
# Modules that nearly every child needs, most of which it imports late; pytest is for the functions of tests.
ALWAYS = (
    "pytest",
    "alembic.command",
    "alembic.config",
    "ckptstore.formats.payload",
    "ckptstore.commit.recovery",
    "ckptstore.manifest.schema",
    "ckptstore.store.store",
    "ckptstore.store.verify",
    "crash.failing_calls",
    "crash.invariants",
    "crash.power_cuts",
    "crash.many_processes",
    "crash.workloads",
    "h5py",
    "numpy.random",
)
_imported: list[str] = []


def preload(modules: Sequence[str] = ()) -> None:
    """Fork children from now on from a process that has imported these modules, and those of earlier calls."""
    missing = [name for name in (*ALWAYS, *modules) if name not in _imported]
    if not missing:
        return
    _imported.extend(missing)
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)  # the server ends with the last of its children
    type(server).__init__(server)
    # The last, since it freezes the objects that exist by then.
    CONTEXT.set_forkserver_preload([*_imported, "crash.warm_start"])
    paths = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(paths)}):
        forkserver.ensure_running()
