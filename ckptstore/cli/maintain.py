"""The commands that change a store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ckptstore.cli.options import command, open_store, with_json
from ckptstore.cli.output import payload_bytes, print_json, print_table, progress_bar, tell
from ckptstore.errors import CorruptManifestError, SchemaTooOldError
from ckptstore.records import Problem
from ckptstore.report import text
from ckptstore.storage.layout import Layout, find_store


@command
@with_json
def repair(store_path: Path, as_json: bool) -> None:
    """Verify everything, and mend what can be; deletes nothing.

    Payloads without a row are taken in; damaged ones are moved to the store's quarantine and marked, missing ones
    marked; one that lies in quarantine and is whole is put back. A manifest that was lost or cannot be read is made
    again from the payloads, and the old one kept. Losses are listed and noted; they end it with 0, too.
    """
    from ckptstore.store.store import CheckpointStore

    root = find_store(store_path)
    with progress_bar("repair", payload_bytes(root)) as progress:
        try:
            unlisted = _orphans(root)
            with CheckpointStore(root) as store:
                problems = [*_taken_in(unlisted), *store.repair(progress=progress)]
        except CorruptManifestError:
            problems = CheckpointStore.rebuild(root, progress=progress)
    with open_store(root) as store:
        counted = text.counted(store.iterate(states=None))
    if as_json:
        print_json(text.findings(problems, counted, ok=True))
    elif problems:
        print_table(text.problem_table(problems))
    else:
        tell(f"{text.all_whole(counted)}; nothing to repair")


def _orphans(root: Path) -> list[Problem]:
    """Return the payloads without a row, which opening the store for writing is about to deal with."""
    try:
        with open_store(root) as store:
            return [problem for problem in store.verify(deep=False) if problem.kind == "orphan"]
    except SchemaTooOldError:
        return []  # the opening brings it up to date first


def _taken_in(orphans: list[Problem]) -> list[Problem]:
    return [
        replace(problem, action="adopted" if problem.path.exists() else "put aside in quarantine")
        for problem in orphans
        if problem.path is not None
    ]


@command
@with_json
def upgrade(store_path: Path, as_json: bool) -> None:
    """Bring a store to the schema that this ckptstore writes.

    A backup of the manifest is made before. Opening a store for writing does the same by itself.
    """
    from ckptstore.manifest.schema import schema_of
    from ckptstore.store.store import CheckpointStore

    root = find_store(store_path)
    before = schema_of(Layout(root).manifest)
    with CheckpointStore(root) as store:
        after = store.schema_version
    if as_json:
        print_json({"from": before, "to": after, "upgraded": before != after})
    elif before == after:
        tell(f"{root}: already has schema {after}")
    else:
        tell(f"{root}: upgraded from schema {before or 'none'} to {after}")
