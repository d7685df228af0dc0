"""Repairs the problems that `verify` reports: adopts, quarantines, puts back and marks. Deletes nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from ckptstore.commit.orphans import adopt, is_listed
from ckptstore.commit.quarantine import withdraw
from ckptstore.errors import CorruptPayloadError, StorageError
from ckptstore.manifest.manifest import Manifest
from ckptstore.records import Checkpoint, Problem, State
from ckptstore.storage.integrity import digest_matches
from ckptstore.storage.layout import Layout
from ckptstore.storage.payloads.at import payloads_at, payloads_of
from ckptstore.storage.payloads.interface import PayloadRef
from ckptstore.store.verify import Progress, verify

Locked = Callable[[], AbstractContextManager[None]]


def repair(
    layout: Layout, manifest: Manifest, locked: Locked, *, progress: Progress | None = None
) -> list[Problem]:
    """Verify a store byte by byte and repair what can be; returns the problems, each with what was done about it.

    A payload in quarantine that equals the one a row lost, byte for byte, is put back. A row that stays lost is marked
    and is no longer a problem; a payload that cannot be read is left alone, and stays one. A crash leaves some problems
    repaired; run it again.

    Args:
        layout: The store's paths.
        manifest: The store's manifest, in which SQLite finds no damage.
        locked: Takes the store's lock; held for one problem at a time, not while payloads are read.
        progress: As `verify` calls it.

    Raises:
        StorageError: Something cannot be read or moved.
    """
    problems = verify(layout, manifest, progress=progress)
    with locked():
        done = _mark_lost(manifest, problems)
    for number, problem in enumerate(done):
        if problem.action is None:
            with locked():
                done[number] = replace(problem, action=_repair(layout, manifest, problem))
    # Known losses too: a repair that died may have recorded one and not reached this step.
    for checkpoint in (*manifest.checkpoints.in_state("missing"), *manifest.checkpoints.in_state("damaged")):
        if _put_back(layout, manifest, locked, checkpoint):
            done = _add_put_back(done, checkpoint)
    return done


def _add_put_back(done: list[Problem], checkpoint: Checkpoint) -> list[Problem]:
    action = "put back from quarantine"
    if not any(problem.version == checkpoint.version for problem in done):
        detail = "its payload lay in quarantine"
        new = Problem(kind=checkpoint.state, detail=detail, version=checkpoint.version, path=checkpoint.path)
        done = [*done, new]
    return [
        replace(problem, action=action) if problem.version == checkpoint.version else problem
        for problem in done
    ]


def _mark_lost(manifest: Manifest, problems: list[Problem]) -> list[Problem]:
    """Record the loss of all checkpoints whose payload is not there, each state in one transaction."""
    marked: dict[int, State] = {}
    states: tuple[State, ...] = ("missing", "damaged")
    for problem in problems:
        checkpoint = None if problem.version is None else manifest.checkpoints.get(problem.version)
        if problem.kind not in states or checkpoint is None or checkpoint.state == "deleting":
            continue
        if not payloads_of(checkpoint).exists(checkpoint.payload):
            marked[checkpoint.version] = "damaged" if checkpoint.state == "damaged" else "missing"
    for state in states:
        versions = [version for version, found in marked.items() if found == state]
        if versions:
            manifest.checkpoints.set_state(
                versions, state, event="repaired", detail={"action": f"marked as {state}"}
            )
    return [
        replace(problem, action=f"marked as {marked[problem.version]}")
        if problem.kind in states and problem.version in marked
        else problem
        for problem in problems
    ]


def _repair(layout: Layout, manifest: Manifest, problem: Problem) -> str | None:
    if problem.kind == "orphan" and problem.path is not None:
        name = problem.path.name
        if not payloads_at(layout).exists(name) or is_listed(manifest, name):
            return "gone by itself"
        reason = adopt(layout, manifest, name)
        return "adopted" if reason is None else f"put aside in quarantine: {reason}"
    if problem.version is None or problem.kind == "unreadable":
        return None
    checkpoint = manifest.checkpoints.get(problem.version)
    if checkpoint is None or checkpoint.state == "deleting":
        return "gone by itself"
    if digest_matches(checkpoint):  # another repair may have come before
        if checkpoint.state != "complete":
            manifest.checkpoints.set_state([checkpoint.version], "complete", event="found")
            return "marked as complete"
        return "gone by itself"
    withdraw(layout, manifest, checkpoint, problem.detail)
    action = "put aside in quarantine, and marked as damaged"
    manifest.checkpoints.set_state(
        [checkpoint.version], "damaged", event="repaired", detail={"action": action}
    )
    return action


def _put_back(layout: Layout, manifest: Manifest, locked: Locked, checkpoint: Checkpoint) -> bool:
    """Move the payload that a row lost back into its place, if it is in quarantine."""
    payloads = payloads_at(layout)
    for name in payloads.quarantined():
        if _is_payload_of(PayloadRef(payloads, name, quarantined=True), checkpoint):
            with locked():
                if payloads.exists(checkpoint.payload) or not payloads.exists(name, quarantined=True):
                    return False
                payloads.put_back(name, checkpoint.payload)
                manifest.checkpoints.set_state([checkpoint.version], "complete", event="found")
            return True
    return False


def _is_payload_of(ref: PayloadRef, checkpoint: Checkpoint) -> bool:
    """Return True if a payload in quarantine is a checkpoint's; False if it cannot be read, for now."""
    try:
        if ref.store.nbytes(ref.name, quarantined=True) != checkpoint.nbytes:
            return False
        with ref.open() as stored:
            stored.verify(checkpoint.nbytes, checkpoint.digest)
    except (CorruptPayloadError, StorageError):
        return False
    return True
