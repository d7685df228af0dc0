"""`RetentionRunner`: applies a policy to a run after a save, and marks what expires in one transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial

from ckptstore.commit.retention.deferred_mark import DeferredMark
from ckptstore.commit.retention.plan import (
    budgets_of,
    check_budget,
    is_shown,
    keeps_nothing_error,
    metrics_of,
    plan_run,
)
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.retention.checks import Decision, RetentionCheck
from ckptstore.manifest.retention.run_rows import RunRows
from ckptstore.records import Checkpoint, RetentionProgress
from ckptstore.retention import Policy
from ckptstore.retention.incremental import always_kept_versions, expired, is_incremental
from ckptstore.retention.max_bytes_progress import BudgetProgress, CheckProgress
from ckptstore.retention.policy import AnyOf, check_modes
from ckptstore.storage.layout import Layout
from ckptstore.storage.payloads.at import payloads_at
from ckptstore.system import messages

# New checkpoints that may expire before the progress of retention is recorded: recording it costs a transaction.
_UNRECORDED = 8


class RetentionRunner:
    """Applies policies to the runs of one store, and remembers the progress of each.

    Args:
        layout: The store's paths.
        manifest: The store's manifest.
    """

    def __init__(self, layout: Layout, manifest: Manifest) -> None:
        self._layout = layout
        self._manifest = manifest
        self._payloads = payloads_at(layout)
        self._warned: set[str] = set()
        # By run and policy: how far the first scan has come, and how far budgets have.
        self._scanned_to: dict[tuple[str, str], int] = {}
        self._progress: dict[tuple[str, str], CheckProgress] = {}

    def mark(self, run: str, policy: Policy) -> list[Checkpoint]:
        """Mark the expired checkpoints of a run, and return them; the caller holds the store's lock.

        If the same policy was applied to the run last, the cost depends on what is new and what expires; otherwise a
        part may be left to the next saves, so that none takes long. A crash leaves everything as it was, or all of it
        marked.

        Raises:
            InvalidArgumentError: The policy contradicts a direction that the run watches, keeps nothing, or is a budget
                that is too small; nothing was marked.
        """
        if is_incremental(policy):
            return self._manifest.retention.apply(run, self._check(partial(self._decide, run, policy)))
        monitors = self._manifest.runs.monitors(run)
        check_modes(policy, monitors)
        if self._lacks_a_metric(
            run,
            policy,
            partial(self._manifest.metrics.names, run),
            partial(self._manifest.checkpoints.latest, run),
        ):
            return []
        plan = plan_run(self._layout, self._manifest, run, policy)
        if plan.keeps_nothing and not policy.is_builtin:
            raise keeps_nothing_error(policy, run)
        if plan.expired:
            self._manifest.retention.expire(run, list(plan.expired.versions))
        return list(plan.expired)

    def deferred_mark(self, run: str, policy: Policy) -> DeferredMark | None:
        """Return what marks in the same way inside another transaction; None if the policy needs more than that."""
        if not is_incremental(policy):
            return None
        mark = DeferredMark(partial(self._decide, run, policy))
        mark.check = self._check(mark.decide)
        return mark

    def _check(self, decide: Callable[[RunRows], Decision | None]) -> RetentionCheck:
        return RetentionCheck(
            decide=decide, is_intact=self._is_intact, is_shown=partial(is_shown, self._layout)
        )

    def _is_intact(self, payload: str, nbytes: int) -> bool:
        return self._payloads.have_sizes([(payload, nbytes)])[0]

    def _decide(self, run: str, policy: Policy, view: RunRows) -> Decision | None:
        check_modes(policy, view.monitors)
        if self._lacks_a_metric(run, policy, view.metric_names, view.latest):
            return None
        name = f"{policy!r} {json.dumps(view.monitors, sort_keys=True)}"
        view.was_checked_by(name)
        view.always = frozenset(always_kept_versions(view))
        for budget in budgets_of(policy):
            best = (view.ranked(metric, mode, 1) for metric, mode in view.monitors.items())
            needed = {version for versions in best for version in versions}
            needed.update(view.newest(1, resumable=True))
            check_budget(budget, view.get(needed))
        view.scanned_to = self._scanned_to.pop((run, name), 0)
        self._continue_budgets(run, name, view)
        to_remove, is_complete = expired(policy, view)
        if view.scanned_to:
            self._scanned_to[run, name] = view.scanned_to
        if budgets_of(policy):
            self._progress[run, name] = _progress(policy, view, to_remove, is_complete)
        if not is_complete:
            return Decision(expired=to_remove, progress=None)
        are_many = len(view.added) + len(view.released) >= _UNRECORDED
        if not (to_remove or are_many or not view.was_checked):
            return None
        progress = RetentionProgress(
            policy=name,
            event_id=view.last_event,
            newest_at=view.newest_at(),
            nbytes=view.nbytes - sum(checkpoint.nbytes for checkpoint in to_remove),
        )
        return Decision(expired=to_remove, progress=progress)

    def _continue_budgets(self, run: str, name: str, view: RunRows) -> None:
        """Let budgets continue from the last check, if only saves came in between."""
        view.budgets = BudgetProgress({})
        before = self._progress.pop((run, name), None)
        if before is None or before.is_recorded != view.was_checked:
            return
        saved = before.saved_since(view.events_after(before.event_id))
        if saved is None:
            return
        view.budgets = BudgetProgress(before.still_reached(view.always))
        if before.nbytes is not None:
            view.known_bytes = (before.nbytes, saved)

    def _lacks_a_metric(
        self,
        run: str,
        policy: Policy,
        metric_names: Callable[[], tuple[str, ...]],
        newest: Callable[[], Checkpoint | None],
    ) -> bool:
        """Return True if a rule uses a metric that the run has not recorded yet: then nothing expires."""
        wanted = metrics_of(policy)
        if not wanted:
            return False
        known = metric_names()
        missing = sorted(wanted - set(known))
        latest = newest() if missing else None
        for metric in missing:
            # Within an epoch there may have been no validation yet.
            if latest is not None and latest.batch is None and metric not in self._warned:
                self._warned.add(metric)
                messages.warn(
                    f"nothing is removed from run {run!r}: {policy!r} looks at {metric!r}, and no checkpoint has "
                    f"such a metric (metrics here: {', '.join(known) or 'none'})"
                )
        return bool(missing)


def _progress(
    policy: Policy, view: RunRows, to_remove: Sequence[Checkpoint], is_complete: bool
) -> CheckProgress:
    removed = {checkpoint.version: checkpoint.nbytes for checkpoint in to_remove}
    is_counted = "nbytes" in vars(view)
    return CheckProgress(
        event_id=view.last_event - 1,
        newest=view.last_version,
        nbytes=view.nbytes - sum(removed.values()) if is_counted else None,
        expired=list(removed),
        # What only a budget lets expire is not there in the next check.
        reached=view.budgets.after(removed) if isinstance(policy.kept, AnyOf) else {},
        always=view.always,
        is_recorded=is_complete,
    )
