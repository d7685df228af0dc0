"""Applies retention to a store: works out what goes, and marks it, in one transaction under the store's lock."""

from __future__ import annotations

import json
import os
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress

from ckptstore.errors import CorruptManifestError, InvalidArgumentError, MetricNotFoundError, StorageError
from ckptstore.manifest.manifest import Manifest
from ckptstore.manifest.retention.checks import Decision, RetentionCheck
from ckptstore.manifest.retention.packed_checkpoints import PackedCheckpoints, PackedRows
from ckptstore.manifest.retention.run_rows import RunRows
from ckptstore.manifest.sqlite_errors import FOREIGN_ERRORS
from ckptstore.records import Checkpoint, RetentionProgress
from ckptstore.retention import Policy, always_kept
from ckptstore.retention.always_kept import best_and_resume_point
from ckptstore.retention.columns import CheckpointColumns
from ckptstore.retention.incremental import always_kept_versions, expired, is_incremental
from ckptstore.retention.max_bytes import MaxBytes
from ckptstore.retention.max_bytes_progress import BudgetProgress, CheckProgress
from ckptstore.retention.policy import AnyOf, check_modes
from ckptstore.retention.reasons import SharedReasons
from ckptstore.retention.rule import RetentionFacts
from ckptstore.storage.integrity import has_size
from ckptstore.storage.layout import Layout, published_path

# So many new checkpoints may go without a note of how far retention has come: a note costs a transaction.
_UNNOTED = 8
NOT_WHOLE = "not whole (ckptstore verify tells more)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a policy does to one run.

    Attributes:
        run: The run.
        expired: Checkpoints that go, oldest first.
        kept: Checkpoints that stay, oldest first.
        reasons: Why each version stays.
        empty: Whether the policy itself keeps nothing.
    """

    run: str
    expired: PackedCheckpoints
    kept: PackedCheckpoints
    reasons: Mapping[int, tuple[str, ...]]
    empty: bool


class Marking:
    """Marks inside somebody else's transaction, which must not fail for what a policy finds; told once it is over.

    Args:
        decision: Tells what goes.

    Attributes:
        check: For `ckptstore.manifest.manifest.Manifest`.
        tried: Whether it has been carried out.
        expired: What was marked, if the transaction was committed.
        error: Why nothing was.
    """

    check: RetentionCheck

    def __init__(self, decision: Callable[[RunRows], Decision | None]) -> None:
        self._decision = decision
        self.tried = False
        self.expired: Sequence[Checkpoint] = ()
        self.error: Exception | None = None

    def decide(self, view: RunRows) -> Decision | None:
        """Tell what goes of a run, or keep the error."""
        self.tried, self.error = True, None
        try:
            decision = self._decision(view)
        except (*FOREIGN_ERRORS, StorageError, CorruptManifestError, MemoryError):
            raise  # of the transaction, which fails as a whole
        except Exception as error:
            # Whatever else it is: the checkpoint that is being added is no worse for it.
            self.error = error
            return None
        self.expired = () if decision is None else decision.expired
        return decision

    def result(self) -> Sequence[Checkpoint]:
        """Return what was marked, or raise why nothing was."""
        if self.error is not None:
            raise self.error
        return self.expired


class Retention:
    """Retention in one store.

    Args:
        layout: Where the store lies.
        manifest: Its manifest.
    """

    def __init__(self, layout: Layout, manifest: Manifest) -> None:
        self._layout = layout
        self._manifest = manifest
        self._warned: set[str] = set()
        # By run and policy, how far a first look has come.
        self._passed: dict[tuple[str, str], int] = {}
        self._progress: dict[tuple[str, str], CheckProgress] = {}

    def mark(self, run: str, policy: Policy) -> list[Checkpoint]:
        """Mark what goes of a run, and return it; the caller holds the store's lock.

        Where the same policy was applied to the run last, this costs time in what is new and what goes; else a part may
        be left to the next saves, so that none takes long. A crash leaves everything as it was, or all of it marked.

        Raises:
            InvalidArgumentError: The policy contradicts what the run watches, keeps nothing, or is a budget that is too
                small; nothing was marked.
        """
        if is_incremental(policy):
            return self._manifest.retention.apply(run, self._check(partial(self._decision, run, policy)))
        monitors = self._manifest.runs.monitors(run)
        check_modes(policy, monitors)
        if self._is_unknown(
            run,
            policy,
            partial(self._manifest.metrics.names, run),
            partial(self._manifest.checkpoints.latest, run),
        ):
            return []
        plan = self.plan(run, policy)
        if plan.empty and not policy.is_builtin:
            raise _keeps_nothing(policy, run)
        if plan.expired:
            self._manifest.retention.expire(run, list(plan.expired.versions))
        return list(plan.expired)

    def marking(self, run: str, policy: Policy) -> Marking | None:
        """Return what marks likewise inside a transaction of somebody else's; None where that cannot be."""
        if not is_incremental(policy):
            return None
        marking = Marking(partial(self._decision, run, policy))
        marking.check = self._check(marking.decide)
        return marking

    def _check(self, decide: Callable[[RunRows], Decision | None]) -> RetentionCheck:
        return RetentionCheck(decide=decide, is_whole=has_size, is_shown=self._is_shown)

    def _decision(self, run: str, policy: Policy, view: RunRows) -> Decision | None:
        check_modes(policy, view.monitors)
        if self._is_unknown(run, policy, view.metric_names, view.latest):
            return None
        name = f"{policy!r} {json.dumps(view.monitors, sort_keys=True)}"
        view.was_judged_by(name)
        view.always = frozenset(always_kept_versions(view))
        for budget in _budgets(policy):
            best = (view.ranked(metric, mode, 1) for metric, mode in view.monitors.items())
            needed = {version for versions in best for version in versions}
            needed.update(view.newest(1, resumable=True))
            _check_budget(budget, view.get(needed))
        view.scanned_to = self._passed.pop((run, name), 0)
        self._go_on(run, name, view)
        going, is_complete = expired(policy, view)
        if view.scanned_to:
            self._passed[run, name] = view.scanned_to
        if _budgets(policy):
            self._progress[run, name] = _progress(policy, view, going, is_complete)
        if not is_complete:
            return Decision(expired=going, progress=None)
        many = len(view.fresh) + len(view.released) >= _UNNOTED
        if not (going or many or not view.is_judged):
            return None
        progress = RetentionProgress(
            policy=name,
            event_id=view.last_event,
            newest_at=view.newest_at(),
            nbytes=view.nbytes - sum(checkpoint.nbytes for checkpoint in going),
        )
        return Decision(expired=going, progress=progress)

    def _go_on(self, run: str, name: str, view: RunRows) -> None:
        """Let a turn begin where the one before has ended, if nothing but saves came in between."""
        view.budgets = BudgetProgress({})
        before = self._progress.pop((run, name), None)
        if before is None or before.is_recorded != view.is_judged:
            return
        saved = before.saved_since(view.events_behind(before.event_id))
        if saved is None:
            return
        view.budgets = BudgetProgress(before.still_reached(view.always))
        if before.nbytes is not None:
            view.counted = (before.nbytes, saved)

    def _is_unknown(
        self,
        run: str,
        policy: Policy,
        metric_names: Callable[[], tuple[str, ...]],
        newest: Callable[[], Checkpoint | None],
    ) -> bool:
        """Tell whether a rule looks at a metric that the run has not recorded yet; then nothing goes."""
        wanted = _metrics(policy)
        if not wanted:
            return False
        known = metric_names()
        missing = sorted(wanted - set(known))
        latest = newest() if missing else None
        for metric in missing:
            # Within an epoch nobody has validated yet.
            if latest is not None and latest.batch is None and metric not in self._warned:
                self._warned.add(metric)
                warnings.warn(
                    f"nothing is removed from run {run!r}: {policy!r} looks at {metric!r}, and no checkpoint has "
                    f"such a metric (metrics here: {', '.join(known) or 'none'})",
                    stacklevel=2,
                )
        return bool(missing)

    def plan(self, run: str, policy: Policy, rows: PackedRows | None = None) -> Plan:
        """Return what a policy does to a run, having looked at all of its checkpoints; changes nothing.

        Args:
            run: The run.
            policy: The policy.
            rows: Where to put the checkpoints; None for a place of their own.

        Raises:
            InvalidArgumentError: As `mark`, but for a policy that keeps nothing.
        """
        monitors = self._manifest.runs.monitors(run)
        check_modes(policy, monitors)
        rows = PackedRows(self._layout.root) if rows is None else rows
        first = len(rows)
        whole, not_whole = self._look(run, _metrics(policy) | monitors.keys(), rows)
        for budget in _budgets(policy):
            _check_budget(budget, best_and_resume_point(whole, monitors))
        resumed = self._manifest.events.last_resumed(run)
        always = always_kept(
            whole,
            monitors=monitors,
            shown=self._shown(),
            resumed=() if resumed is None else (resumed,),
            is_whole=lambda checkpoint: True,
        )
        here = range(first, len(rows))
        seen: Sequence[RetentionFacts] = whole
        if not policy.is_builtin:
            # A function of a user's own is given what is documented, whatever memory that takes.
            seen = list(PackedCheckpoints(rows, (at for at in here if at not in not_whole)))
        found = policy.reasons(seen, always.keys())
        gone, kept = array("I"), array("I")

        def judged() -> Iterator[tuple[int, tuple[str, ...]]]:
            for at in here:
                version = rows.versions[at]
                why = (*found.get(version, ()), *always.get(version, ()))
                why = (NOT_WHOLE,) if at in not_whole else why
                (kept if why else gone).append(at)
                if why:
                    yield version, why

        reasons = SharedReasons(judged())
        gone_ones, kept_ones = PackedCheckpoints(rows, gone), PackedCheckpoints(rows, kept)
        empty = bool(whole) and not found
        return Plan(run=run, expired=gone_ones, kept=kept_ones, reasons=reasons, empty=empty)

    def _look(self, run: str, metrics: Iterable[str], rows: PackedRows) -> tuple[CheckpointColumns, set[int]]:
        """Put a run's checkpoints into rows; returns what rules see of the whole ones, and where the others are."""
        whole = CheckpointColumns(sorted(metrics))
        not_whole: set[int] = set()
        root = os.fspath(self._layout.root)
        for page in self._manifest.checkpoints.row_pages(run):
            are_whole = [has_size(f"{root}/{one.file}", one.nbytes) for one in page]
            whole.extend(list(compress(page, are_whole)))
            not_whole.update(at for at, is_whole in enumerate(are_whole, start=len(rows)) if not is_whole)
            rows.append(page)
        return whole, not_whole

    def _shown(self) -> set[int]:
        """Versions that a path shows, or is about to; one whose path the user removed is shown no more."""
        return {
            published.version
            for published in self._manifest.published.all()
            if self._is_shown(published.path, published.pending)
        }

    def _is_shown(self, path: str, pending: bool) -> bool:
        return pending or os.path.lexists(published_path(self._layout.root, path))


def _progress(policy: Policy, view: RunRows, going: Sequence[Checkpoint], is_complete: bool) -> CheckProgress:
    gone = {checkpoint.version: checkpoint.nbytes for checkpoint in going}
    counted = "nbytes" in vars(view)
    return CheckProgress(
        event_id=view.last_event - 1,
        newest=view.last_version,
        nbytes=view.nbytes - sum(gone.values()) if counted else None,
        expired=list(gone),
        # What a budget alone lets go is not there in the next turn.
        reached=view.budgets.after(gone) if isinstance(policy.kept, AnyOf) else {},
        always=view.always,
        is_recorded=is_complete,
    )


def check_for_prune(plan: Plan, policy: Policy, known: Sequence[str], layout: Layout) -> None:
    """Refuse a policy that looks at what a run does not have, or keeps nothing of it.

    Raises:
        MetricNotFoundError: The run has no such metric.
        InvalidArgumentError: The policy keeps nothing.
    """
    if not plan.expired and not plan.kept:
        return
    for metric in sorted(_metrics(policy)):
        if metric not in known:
            raise MetricNotFoundError(metric=metric, store=layout.root, known=tuple(known))
    if plan.empty:
        raise _keeps_nothing(policy, plan.run)


def _metrics(policy: Policy) -> set[str]:
    return {metric for rule in policy.rules() for metric, _ in rule.modes}


def _budgets(policy: Policy) -> list[MaxBytes]:
    return [rule for rule in policy.rules() if isinstance(rule, MaxBytes)]


def _check_budget(budget: MaxBytes, needed: Sequence[RetentionFacts]) -> None:
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


def _keeps_nothing(policy: Policy, run: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        argument="policy",
        value=policy,
        reason=f"keeps none of the checkpoints of run {run!r}; nothing was removed",
        hint="join it to another by |, such as ckptstore.keep_last(3)",
    )
