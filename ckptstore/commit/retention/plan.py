"""`plan_run`: the effect of a policy on one run, found by reading all of the run's checkpoints."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress

from ckptstore.errors import InvalidArgumentError, MetricNotFoundError
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.retention.packed_checkpoints import PackedCheckpoints, PackedRows
from ckptstore.retention import Policy, always_kept
from ckptstore.retention.always_kept import best_and_resume_point
from ckptstore.retention.columns import CheckpointColumns
from ckptstore.retention.max_bytes import MaxBytes
from ckptstore.retention.policy import check_modes
from ckptstore.retention.reasons import SharedReasons
from ckptstore.retention.rule import RetentionFacts
from ckptstore.storage.layout import Layout, published_path
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.storage.payloads.names import payload_of_file

NOT_WHOLE = "not whole (ckptstore verify tells more)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The effect of a policy on one run.

    Attributes:
        run: The run.
        expired: Checkpoints to remove, oldest first.
        kept: Checkpoints that stay, oldest first.
        reasons: The reasons for which each version stays.
        keeps_nothing: True if the policy itself keeps nothing.
    """

    run: str
    expired: PackedCheckpoints
    kept: PackedCheckpoints
    reasons: Mapping[int, tuple[str, ...]]
    keeps_nothing: bool


def plan_run(
    layout: Layout, manifest: Manifest, run: str, policy: Policy, rows: PackedRows | None = None
) -> Plan:
    """Return the effect of a policy on a run; changes nothing.

    Args:
        layout: The store's paths.
        manifest: The store's manifest.
        run: The run.
        policy: The policy.
        rows: Where the checkpoints are added; None for rows of their own.

    Raises:
        InvalidArgumentError: The policy contradicts a direction that the run watches, or is a budget that is too small.
    """
    monitors = manifest.runs.monitors(run)
    check_modes(policy, monitors)
    rows = PackedRows(layout.root) if rows is None else rows
    first = len(rows)
    intact, not_intact = _read(layout, manifest, run, metrics_of(policy) | monitors.keys(), rows)
    for budget in budgets_of(policy):
        check_budget(budget, best_and_resume_point(intact, monitors))
    resumed = manifest.events.last_resumed(run)
    always = always_kept(
        intact,
        monitors=monitors,
        shown=_shown(layout, manifest),
        resumed=() if resumed is None else (resumed,),
        is_intact=lambda checkpoint: True,
    )
    positions = range(first, len(rows))
    facts: Sequence[RetentionFacts] = intact
    if not policy.is_builtin:
        # A user's function is given complete checkpoints, as documented, whatever memory that takes.
        facts = list(PackedCheckpoints(rows, (at for at in positions if at not in not_intact)))
    kept_by_policy = policy.reasons(facts, always.keys())
    expired, kept = array("I"), array("I")

    def sort_out() -> Iterator[tuple[int, tuple[str, ...]]]:
        for at in positions:
            version = rows.versions[at]
            reasons = (*kept_by_policy.get(version, ()), *always.get(version, ()))
            reasons = (NOT_WHOLE,) if at in not_intact else reasons
            (kept if reasons else expired).append(at)
            if reasons:
                yield version, reasons

    reasons = SharedReasons(sort_out())
    return Plan(
        run=run,
        expired=PackedCheckpoints(rows, expired),
        kept=PackedCheckpoints(rows, kept),
        reasons=reasons,
        keeps_nothing=bool(intact) and not kept_by_policy,
    )


def _read(
    layout: Layout, manifest: Manifest, run: str, metrics: Iterable[str], rows: PackedRows
) -> tuple[CheckpointColumns, set[int]]:
    """Add a run's checkpoints to rows; returns the rules' view of the intact ones, and the positions of the others."""
    intact = CheckpointColumns(sorted(metrics))
    not_intact: set[int] = set()
    payloads = payloads_at(layout)
    for page in manifest.checkpoints.row_pages(run):
        are_intact = payloads.have_sizes([(payload_of_file(row.file), row.nbytes) for row in page])
        intact.extend(list(compress(page, are_intact)))
        not_intact.update(at for at, is_intact in enumerate(are_intact, start=len(rows)) if not is_intact)
        rows.append(page)
    return intact, not_intact


def _shown(layout: Layout, manifest: Manifest) -> set[int]:
    """Return the versions that a path shows, or is about to; a path that the user removed shows nothing."""
    return {
        published.version
        for published in manifest.published.all()
        if is_shown(layout, published.path, published.pending)
    }


def is_shown(layout: Layout, path: str, pending: bool) -> bool:
    """Return True if a published path shows a checkpoint, or is about to."""
    return pending or os.path.lexists(published_path(layout.root, path))


def check_for_prune(plan: Plan, policy: Policy, known: Sequence[str], layout: Layout) -> None:
    """Refuse a policy that uses a metric which the run does not have, or that keeps nothing of the run.

    Raises:
        MetricNotFoundError: The run has no such metric.
        InvalidArgumentError: The policy keeps nothing.
    """
    if not plan.expired and not plan.kept:
        return
    for metric in sorted(metrics_of(policy)):
        if metric not in known:
            raise MetricNotFoundError(metric=metric, store=layout.root, known=tuple(known))
    if plan.keeps_nothing:
        raise keeps_nothing_error(policy, plan.run)


def metrics_of(policy: Policy) -> set[str]:
    """Return the metrics that a policy's rules use."""
    return {metric for rule in policy.rules() for metric, _ in rule.modes}


def budgets_of(policy: Policy) -> list[MaxBytes]:
    """Return the size budgets among a policy's rules."""
    return [rule for rule in policy.rules() if isinstance(rule, MaxBytes)]


def check_budget(budget: MaxBytes, needed: Sequence[RetentionFacts]) -> None:
    """Refuse a budget that is too small for the best checkpoints and the resume point.

    Raises:
        InvalidArgumentError: It is too small.
    """
    nbytes = sum(checkpoint.nbytes for checkpoint in needed)
    if nbytes > budget.nbytes:
        versions = ", ".join(str(checkpoint.version) for checkpoint in needed)
        raise InvalidArgumentError(
            argument="max_bytes",
            value=budget.nbytes,
            reason=f"is less than the best and the resume point take: {nbytes} bytes (version {versions}); "
            "nothing was removed",
            hint="allow more bytes",
        )


def keeps_nothing_error(policy: Policy, run: str) -> InvalidArgumentError:
    """Return the error for a policy that keeps nothing of a run."""
    return InvalidArgumentError(
        argument="policy",
        value=policy,
        reason=f"keeps none of the checkpoints of run {run!r}; nothing was removed",
        hint="join it to another by |, such as ckptstore.keep_last(3)",
    )
