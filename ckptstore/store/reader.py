"""`StoreReader`: the queries of a store, all that one open for reading can answer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, overload

from ckptstore.errors import CheckpointNotFoundError, InvalidArgumentError, MetricNotFoundError
from ckptstore.manifest.checkpoints import COMPLETE_ONLY
from ckptstore.manifest.conditions import Condition, Metric, Term, metrics_in, parse, parse_order
from ckptstore.manifest.manifest import Manifest
from ckptstore.metrics import is_better
from ckptstore.records import Attempt, Checkpoint, Epoch, Event, Mode, Run, SavingCost, State
from ckptstore.storage.layout import Layout, published_path
from ckptstore.store import refs

if TYPE_CHECKING:
    from pandas import DataFrame

    from ckptstore.store.diff import Difference, Progress
    from ckptstore.store.history import History, RunSummary

Ref = str | int | Checkpoint


class StoreReader:
    """The reading half of `ckptstore.CheckpointStore`: queries of the manifest, which change nothing.

    Attributes:
        path: The store's directory.
    """

    path: Path
    _manifest: Manifest

    def checkpoints(
        self,
        run: str | None = None,
        *,
        states: Collection[State] | None = COMPLETE_ONLY,
        where: str | None = None,
        order_by: str | None = None,
        limit: int | None = None,
    ) -> list[Checkpoint]:
        """Return a run's checkpoints, or all, oldest first.

        Args:
            run: The run; None for all runs.
            states: Which states to list; None for all, those with a missing or damaged payload too.
            where: A condition, such as ``"val_loss < 0.3 and epoch >= 5"``. A name is a field of `Checkpoint`
                (version, run, epoch, batch, step, nbytes, created_at, format, state, digest, pinned, resumable,
                blocked_s, total_s) or else a metric; a metric of any name is ``metric["name"]``. It may use
                ``< <= > >= == !=``, ``and``, ``or``, ``not``, ``in (...)``, ``is None`` and ``"name" in tags``. A
                checkpoint without the metric, or with NaN, fulfils no comparison of it. The text never becomes SQL.
            order_by: A field or a metric, with ``-`` before it for the greatest first; checkpoints that lack it come
                last, and of equals the earlier comes first.
            limit: The most to return.

        Raises:
            InvalidArgumentError: `where` or `order_by` cannot be parsed; says where.
            MetricNotFoundError: No checkpoint has a metric that they name.
        """
        if where is None and order_by is None and limit is None:
            return self._manifest.checkpoints.all(run, states=states)
        return list(self.iterate(run, states=states, where=where, order_by=order_by, limit=limit))

    def iterate(
        self,
        run: str | None = None,
        *,
        states: Collection[State] | None = COMPLETE_ONLY,
        where: str | None = None,
        order_by: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Checkpoint]:
        """Yield what `checkpoints` returns, read some hundreds at a time: a million are never in memory at once.

        A checkpoint that is removed meanwhile is left out.

        Raises:
            InvalidArgumentError: As `checkpoints`, at once; likewise `MetricNotFoundError`.
        """
        condition = None if where is None else parse(where)
        order = None if order_by is None else parse_order(order_by)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise InvalidArgumentError(argument="limit", value=limit, reason="must be 0 or more")
        self._check_metrics(condition, order)
        if condition is None and order is None and limit is None:
            return self._manifest.checkpoints.iterate(run, states=states)
        return self._manifest.checkpoints.search(
            run, states=states, where=condition, order=order, limit=limit
        )

    def _check_metrics(self, condition: Condition | None, order: tuple[Term, bool] | None) -> None:
        wanted = set() if condition is None else set(metrics_in(condition))
        if order is not None and isinstance(order[0], Metric):
            wanted.add(order[0].name)
        if not wanted:
            return
        known = self._manifest.metrics.names()
        for metric in sorted(wanted):
            if metric not in known:
                raise MetricNotFoundError(metric=metric, store=self.path, known=known)

    def latest(self, run: str | None = None) -> Checkpoint | None:
        """Return the newest checkpoint, or None where there is none."""
        return self._manifest.checkpoints.latest(run)

    @overload
    def best(self, metric: str, *, mode: Mode | None = None, run: str | None = None) -> Checkpoint | None: ...

    @overload
    def best(
        self, metric: str, *, mode: Mode | None = None, run: str | None = None, k: int
    ) -> list[Checkpoint]: ...

    def best(
        self, metric: str, *, mode: Mode | None = None, run: str | None = None, k: int | None = None
    ) -> Checkpoint | list[Checkpoint] | None:
        """Return the checkpoint with the best value of a metric, or None where there is none; or the `k` best.

        NaN is never best; of equals the earlier is returned. Only checkpoints are compared: an epoch that was not saved
        may have been better by a metric that was not monitored; `better_epoch` tells.

        Args:
            metric: The metric's name, as in Keras' logs.
            mode: ``"min"`` or ``"max"``; None for the direction in which the run's callback watched it, or else the
                usual one for its name.
            run: The run; None for all runs.
            k: How many, for a list, best first.

        Raises:
            MetricNotFoundError: There are checkpoints, but none has this metric.
            InvalidArgumentError: `mode` is needed: neither a callback nor the name gives the direction.
        """
        if k is None:
            return refs.best(self._manifest, self.path, metric, mode=mode, run=run)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InvalidArgumentError(argument="k", value=k, reason="must be a positive integer")
        direction = refs.direction_of(self._manifest, self.path, metric, mode=mode, run=run)
        return [] if direction is None else self._manifest.checkpoints.ranked(metric, direction, run, limit=k)

    def better_epoch(self, checkpoint: Checkpoint, metric: str, *, mode: Mode | None = None) -> int | None:
        """Return the best epoch of a checkpoint's run by a metric, if it is better than the checkpoint; else None.

        There is no checkpoint of such an epoch: it was not saved, or the checkpoint was removed.

        Args:
            checkpoint: A checkpoint, such as `best` returns.
            metric: The metric's name.
            mode: As for `best`.

        Raises:
            MetricNotFoundError: As `best`; likewise `InvalidArgumentError`.
        """
        direction = refs.direction_of(self._manifest, self.path, metric, mode=mode, run=checkpoint.run)
        found = None if direction is None else self._manifest.epochs.best(metric, direction, checkpoint.run)
        if direction is None or found is None:
            return None
        epoch, value = found
        return epoch if is_better(value, checkpoint.metrics.get(metric), direction) else None

    def resume_point(self, run: str | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that a run can resume from, or None where there is none.

        It carries training state, and its payload is there with its size; `restore` verifies its digest.
        """
        return refs.resume_point(self._manifest, run)

    def checkpoint_without_state(self, run: str | None = None) -> Checkpoint | None:
        """Return the newest checkpoint where there are some, and none that a run could ever be resumed from.

        None if there are no checkpoints, if the run has begun from scratch since, or if one carries training state,
        though its payload may be lost or damaged.
        """
        newest = self.latest(run)
        if newest is None:
            return None
        first = self._manifest.beginnings.first_version(newest.run)
        with_state = self.checkpoints(
            newest.run, states=None, where=f"version >= {first} and resumable", limit=1
        )
        return None if newest.version < first or with_state else newest

    def get(self, ref: Ref) -> Checkpoint:
        """Return the checkpoint that a ref names.

        Args:
            ref: A version, ``"latest"``, ``"best:METRIC"``, ``"resume-point"``, a tag, or a `Checkpoint`.

        Raises:
            CheckpointNotFoundError: There is none.
        """
        found = ref if isinstance(ref, Checkpoint) else refs.look_up(self._manifest, self.path, ref)
        if found is None:
            raise CheckpointNotFoundError(ref=ref, store=self.path)
        return found

    def runs(self) -> list[Run]:
        """Return all runs, sorted by name, each with its state and where it stands now.

        A state is true because a lock is held, or is not: a training that was killed a moment ago is ``"interrupted"``,
        and one whose process has been stopped by a signal is ``"running"``, with a `Run.note` that says so. It is
        ``"hung"`` if it has been silent for many times its longest silence so far, and for ten minutes at least (half
        an hour before its first batch); that can be told on the machine that it runs on. A loop written by hand that
        calls `CheckpointStore.beat` counts too. Reading takes no lock of a training, and writes nothing.

        Example:
            >>> import tempfile
            >>> from ckptstore import CheckpointStore
            >>> with tempfile.TemporaryDirectory() as folder, CheckpointStore(folder) as store:
            ...     print(store.runs())
            []
        """
        from ckptstore.store.runs import runs_of

        return runs_of(self._manifest, Layout(self.path))

    def run_names(self) -> tuple[str, ...]:
        """Return the names of all runs."""
        return self._manifest.runs.names()

    def attempts(self, run: str | None = None) -> list[Attempt]:
        """Return the attempts at a run, or at all: the processes that trained it, in the order in which they began.

        One that was killed records no end. Where its heartbeat tells that it is dead, its probable end is shown as the
        next attempt will record it.

        Args:
            run: The run; None for all.
        """
        from ckptstore.store.attempts.evidence import with_probable_ends

        return with_probable_ends(self._manifest, self._manifest.attempts.of_run(run))

    def attempt_of(self, checkpoint: Checkpoint) -> Attempt | None:
        """Return the attempt that saved a checkpoint, or None where none is recorded for that time."""
        begun = [
            attempt
            for attempt in self._manifest.attempts.of_run(checkpoint.run)
            if attempt.started_at <= checkpoint.created_at
        ]
        return begun[-1] if begun else None

    def metric_names(self, run: str | None = None) -> tuple[str, ...]:
        """Return the names of all metrics that a run, or any run, has recorded."""
        return self._manifest.metrics.names(run)

    def monitors(self, run: str) -> dict[str, Mode]:
        """Return the metrics that a run's callbacks watched, each with its better direction."""
        return self._manifest.runs.monitors(run)

    def published(self, run: str) -> dict[Path, int]:
        """Return a run's published paths, absolute, with the version that each shows; a path may be gone by now."""
        published = (path for path in self._manifest.published.all() if path.run == run)
        return {published_path(self.path, path.path): path.version for path in published}

    @property
    def uuid(self) -> str:
        """The store's own id, made with it."""
        return self._manifest.uuid

    @property
    def schema_version(self) -> str:
        """The manifest's schema revision."""
        return self._manifest.schema_version

    def tags(self) -> dict[str, int]:
        """Return the version that each tag names, sorted by tag."""
        return self._manifest.tags.all()

    def history(self, run: str = "default") -> History:
        """Return each metric of a run by epoch, across restarts, also of checkpoints that were removed.

        Raises:
            RunNotFoundError: There is no such run.
        """
        from ckptstore.store.history import history_of

        return history_of(self._manifest, self.path, run)

    def epochs(self, run: str, *, last: int) -> list[Epoch]:
        """Return the last recorded epochs of a run, in order, as its `history` has them; none of an unknown run.

        Args:
            run: The run.
            last: The most to return.
        """
        return self._manifest.epochs.newest(run, last)

    def saving_cost(self, run: str, *, saves: int = 30, since: datetime | None = None) -> SavingCost | None:
        """Return what a run's last saves have cost its training, or None where that is not known of any.

        Args:
            run: The run.
            saves: The most saves to count.
            since: Saves before this time do not count; aware. The start of an attempt leaves out the time between two.
        """
        from ckptstore.store.saving_cost import cost_of

        return cost_of(self._manifest.events.saves(run, since=since, limit=saves))

    def compare(self, *runs: str, metrics: Collection[str] | None = None) -> list[RunSummary]:
        """Return runs side by side: how far each came, and its best by each metric.

        Args:
            *runs: The runs; all where none is given.
            metrics: The metrics; None for all.

        Raises:
            RunNotFoundError: There is no such run.
            MetricNotFoundError: None of the runs has a metric.
        """
        from ckptstore.store.history import compare

        return compare(self._manifest, self.path, runs, metrics)

    def events(
        self, *, kind: str | None = None, run: str | None = None, limit: int | None = None
    ) -> list[Event]:
        """Return the store's events, newest first: saves, tags that moved, resumes, removals, damage.

        Args:
            kind: Such as ``"saved"``, ``"tagged"``, ``"untagged"``, ``"resumed"``, ``"pruned"``; None for all.
            run: The run; None for all.
            limit: The most to return.
        """
        return self._manifest.events.find(kind=kind, run=run, limit=limit)

    def to_dataframe(
        self,
        run: str | None = None,
        *,
        where: str | None = None,
        order_by: str | None = None,
        limit: int | None = None,
    ) -> DataFrame:
        """Return checkpoints as a pandas table: a row for each, its fields, then a column for each metric.

        Args:
            run: As for `checkpoints`.
            where: As for `checkpoints`.
            order_by: As for `checkpoints`.
            limit: As for `checkpoints`.

        Raises:
            MissingPackageError: (an ImportError) pandas is not installed.
        """
        from ckptstore.store.dataframe import dataframe_of

        return dataframe_of(self.iterate(run, where=where, order_by=order_by, limit=limit))

    def diff(self, first: Ref, second: Ref, *, progress: Progress | None = None) -> Difference:
        """Compare two checkpoints: metrics, and how far each variable has moved.

        Both are verified; one variable of each is in memory at a time.

        Args:
            first: A version, ``"latest"``, ``"best:METRIC"``, ``"resume-point"``, a tag, or a `Checkpoint`, which may
                be another store's.
            second: As `first`.
            progress: Called with numbers of bytes as they are read, up to twice what both payloads have.

        Raises:
            CheckpointNotFoundError: No checkpoint answers to a ref.
            CorruptPayloadError: A payload is damaged.
        """
        from ckptstore.store.diff import difference

        return difference(self.get(first), self.get(second), progress)
