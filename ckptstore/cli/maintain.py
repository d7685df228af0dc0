"""Commands that keep a store healthy: verify, repair, upgrade."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptstore.cli.exit_codes import PROBLEMS_FOUND
from ckptstore.cli.options import command, open_store, with_json
from ckptstore.cli.output import echo, log, payload_bytes, print_json, print_table, progress_bar
from ckptstore.errors import CorruptManifestError, SchemaTooOldError
from ckptstore.report import text
from ckptstore.storage.layout import Layout, find_store
from ckptstore.storage.payloads.at import payloads_at

if TYPE_CHECKING:
    from ckptstore.records import Problem


@command
@click.option("--shallow", is_flag=True, help="Compare names and sizes only; read no payload.")
@with_json
def verify(store_path: Path, shallow: bool, as_json: bool) -> int:
    """Compare manifest, files and digests; changes nothing.

    Reads every payload in full, unless --shallow is given. Exits with 5 when there is a problem;
    `ckptstore repair` then repairs it.
    """
    with open_store(store_path) as store, progress_bar("verify", payload_bytes(store.path)) as progress:
        problems = store.verify(deep=not shallow, progress=progress)
        counts = text.count_states(store.iterate(states=None)) if _is_readable(problems) else Counter()
    if as_json:
        print_json(text.verify_document(problems, counts, ok=not problems))
    elif problems:
        print_table(text.problem_table(problems))
        log(f"to repair it, run: ckptstore repair {shlex.quote(str(store_path))}")
    else:
        echo(text.no_problems_line(counts))
    return PROBLEMS_FOUND if problems else 0


def _is_readable(problems: list[Problem]) -> bool:
    return not any(problem.kind == "manifest" for problem in problems)


@command
@with_json
def repair(store_path: Path, as_json: bool) -> None:
    """Repair the problems that verify finds; deletes nothing.

    Payloads without a row are adopted. Damaged payloads are moved to quarantine and marked, missing ones are
    marked, and an intact one found in quarantine is put back. A lost or unreadable manifest is rebuilt from
    the payloads, and the old one is kept. Losses are listed and recorded; the exit code is 0 anyway.
    """
    from ckptstore.store.store import CheckpointStore

    root = find_store(store_path)
    with progress_bar("repair", payload_bytes(root)) as progress:
        try:
            orphans = _orphans(root)
            with CheckpointStore(root) as store:
                problems = [*_handled_at_open(root, orphans), *store.repair(progress=progress)]
        except CorruptManifestError:
            problems = CheckpointStore.rebuild(root, progress=progress)
    with open_store(root) as store:
        counts = text.count_states(store.iterate(states=None))
    if as_json:
        print_json(text.verify_document(problems, counts, ok=True))
    elif problems:
        print_table(text.problem_table(problems))
    else:
        echo(f"{text.no_problems_line(counts)}; nothing to repair")


def _orphans(root: Path) -> list[Problem]:
    """Return the payloads without a row; opening the store for writing adopts them or puts them in quarantine."""
    try:
        with open_store(root) as store:
            return [problem for problem in store.verify(deep=False) if problem.kind == "orphan"]
    except SchemaTooOldError:
        return []  # opening for writing upgrades the store first


def _handled_at_open(root: Path, orphans: list[Problem]) -> list[Problem]:
    """Return the orphans with what the opening did about each."""
    payloads = payloads_at(Layout(root))
    return [
        replace(
            problem, action="adopted" if payloads.exists(problem.path.name) else "put aside in quarantine"
        )
        for problem in orphans
        if problem.path is not None
    ]


@command
@with_json
def upgrade(store_path: Path, as_json: bool) -> None:
    """Upgrade a store to the schema of this ckptstore.

    The manifest is backed up first. Opening a store for writing upgrades it too.
    """
    from ckptstore.store.upgrade import upgrade_at

    root = find_store(store_path)
    before, after = upgrade_at(root)
    if as_json:
        print_json({"from": before, "to": after, "upgraded": before != after})
    elif before == after:
        echo(f"{root}: already has schema {after}")
    else:
        echo(f"{root}: upgraded from schema {before or 'none'} to {after}")
