"""Makes SQLAlchemy compile each statement once per process, not once per store: tests open thousands of stores.

The executed statements are the same. `warm_up` compiles them before a process is forked, so that its children need not.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from sqlalchemy import Engine, create_engine

from ckptstore.manifest import engine as sqlite_engine
from ckptstore.retention import keep_last
from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save

_first: list[Engine] = []


def share_compiled() -> None:
    """Let all engines of this process, and of those forked from it, share compiled statements."""
    mock.patch.object(sqlite_engine, "create_engine", _engine).start()


def _engine(*arguments: Any, **options: Any) -> Engine:
    engine = create_engine(*arguments, **options)
    if not _first:
        _first.append(engine)
    (first,) = _first
    engine.dialect = engine.pool._dialect = first.dialect
    engine._compiled_cache = first._compiled_cache
    return engine


def warm_up() -> None:
    """Do once what nearly every child does, on a temporary store."""
    share_compiled()
    folder = Path(tempfile.mkdtemp(prefix="ckptstore-warm-"))
    try:
        for seed in (1, 2):
            with CheckpointStore(folder / "store") as store:
                save(store, seed, publish=folder / "shown.keras")
                save(store, seed + 2, publish=folder / "shown.keras", keep=keep_last(2))
                store.best("loss", mode="min")
                store.resume_point()
                store.verify()
    finally:
        shutil.rmtree(folder)
