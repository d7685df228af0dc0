"""Writes ``migrations/schema.sql``, the result of all revisions together, from which new manifests are created.

python tools/write_schema.py        after each new revision
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from ckptstore.manifest import schema

TARGET = Path(__file__).resolve().parent.parent / "migrations" / schema.SCHEMA


def statements() -> list[str]:
    """Run the revisions, and return the statements that create the resulting tables, indexes and views."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.sqlite"
        schema.upgrade(path)
        with closing(sqlite3.connect(path)) as database:
            created = database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
            return ["\n".join(line.rstrip() for line in sql.splitlines()) for (sql,) in created]


def text() -> str:
    """Return the file's text."""
    marked = f"INSERT INTO alembic_version (version_num) VALUES ('{schema.HEAD}')"
    return f"-- {schema.HEAD}\n" + "".join(f"{statement};\n\n" for statement in [*statements(), marked])


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
