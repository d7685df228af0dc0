"""`prune`: removes what a policy does not keep, on demand; or reports what it would remove, and why the rest stays."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ckptstore.commit.retention.deletion import finish_deletions
from ckptstore.commit.retention.plan import Plan, check_for_prune, plan_run
from ckptstore.errors import RunNotFoundError
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.retention.packed_checkpoints import PackedCheckpoints, PackedRows, Summary
from ckptstore.retention.policy import KeepFunction, Policy, as_policy
from ckptstore.retention.reasons import SharedReasons
from ckptstore.storage.layout import Layout
from ckptstore.storage.locks import store_lock
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.storage.reserve import release_and_retry


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """Result of `ckptstore.CheckpointStore.prune`.

    Attributes:
        removed: Checkpoints that were removed, or would be, oldest first within a run.
        kept: Checkpoints that stay.
        reasons: The reasons for which each version stays: the rules' names, ``"best METRIC"``, ``"newest two"``,
            ``"to resume from"``, ``"resumed from"``, ``"pinned"``, ``"shown"``, or that it is not whole.
        dry_run: True if nothing was removed.
    """

    removed: PackedCheckpoints
    kept: PackedCheckpoints
    reasons: Mapping[int, tuple[str, ...]]
    dry_run: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the removed checkpoints."""
        return self.removed.rows.nbytes(self.removed.positions)

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object; `kept` has each checkpoint's version and reasons."""
        document = self.documents()
        return {**document, "removed": list(document["removed"]), "kept": list(document["kept"])}

    def documents(self) -> dict[str, Any]:
        """Return what `to_json` returns, with iterators in place of its lists: there may be very many."""
        return {
            "dry_run": self.dry_run,
            "removed": (checkpoint.to_json() for checkpoint in self.removed),
            "removed_nbytes": self.nbytes,
            "kept": (
                {"version": version, "reasons": list(self.reasons[version])} for version in self.kept.versions
            ),
        }

    def places(self) -> Iterator[tuple[Summary, bool]]:
        """Yield each checkpoint's cheap facts, lowest version first, and True if it is removed."""
        rows = self.removed.rows
        is_removed = bytearray(len(rows))
        for at in self.removed.positions:
            is_removed[at] = True
        order = rows.by_version()
        return zip(rows.summaries(order), (bool(is_removed[at]) for at in order), strict=True)


def prune(
    layout: Layout,
    manifest: Manifest,
    policy: Policy | KeepFunction,
    *,
    run: str | None,
    dry_run: bool,
) -> Pruned:
    """Apply a policy to a run, or to each run; see `ckptstore.CheckpointStore.prune`."""
    policy = as_policy(policy)
    runs = _runs(layout, manifest, run)
    rows = PackedRows(layout.root)
    if dry_run:
        return _pruned(rows, list(_plans(layout, manifest, policy, runs, rows)), dry_run=True)
    locked = partial(store_lock, layout.locks)
    # Chosen and marked under one lock: nobody pins or tags in between what is about to be removed.
    with locked():
        plans = list(_plans(layout, manifest, policy, runs, rows))
        for plan in plans:
            if plan.expired:
                release_and_retry(
                    layout.reserve,
                    partial(manifest.retention.expire, plan.run, array("q", plan.expired.versions)),
                )
    for plan in plans:
        if plan.expired:
            finish = partial(finish_deletions, payloads_at(layout), manifest, plan.expired, locked)
            release_and_retry(layout.reserve, finish)
    return _pruned(rows, plans, dry_run=False)


def _runs(layout: Layout, manifest: Manifest, run: str | None) -> tuple[str, ...]:
    runs = manifest.runs.names()
    if run is None:
        return runs
    if run not in runs:
        raise RunNotFoundError(run=run, store=layout.root, known=runs)
    return (run,)


def _plans(
    layout: Layout, manifest: Manifest, policy: Policy, runs: Sequence[str], rows: PackedRows
) -> Iterator[Plan]:
    for run in runs:
        plan = plan_run(layout, manifest, run, policy, rows)
        check_for_prune(plan, policy, manifest.metrics.names(run), layout)
        yield plan


def _pruned(rows: PackedRows, plans: Sequence[Plan], *, dry_run: bool) -> Pruned:
    return Pruned(
        removed=PackedCheckpoints(rows, (at for plan in plans for at in plan.expired.positions)),
        kept=PackedCheckpoints(rows, (at for plan in plans for at in plan.kept.positions)),
        reasons=SharedReasons(pair for plan in plans for pair in plan.reasons.items()),
        dry_run=dry_run,
    )
