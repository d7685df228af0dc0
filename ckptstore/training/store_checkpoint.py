"""`StoreCheckpoint`: saves a fit into a store, and goes on with it when the script is started again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from ckptstore.background.save_queue import Backpressure
from ckptstore.errors import InvalidArgumentError, MetricNotFoundError
from ckptstore.keras.private import print_message, wait_for_step
from ckptstore.keras.state.arrays import state_nbytes
from ckptstore.metrics import better_of, scalars
from ckptstore.records import Checkpoint, Mode
from ckptstore.retention import Policy, keep_last
from ckptstore.storage.layout import absolute
from ckptstore.store.store import CheckpointStore
from ckptstore.system.stop_signals import STOP_SIGNALS
from ckptstore.training.resuming_callback import ResumingCallback
from ckptstore.training.saving import monitor as monitoring
from ckptstore.training.saving.arguments import check_keep, check_save_freq
from ckptstore.training.saving.failures import OnSaveError, SaveFailures, check_on_save_error
from ckptstore.training.saving.monitor import Verdict
from ckptstore.training.saving.overhead_budget import MAX_OVERHEAD, SaveBudget
from ckptstore.training.session.save_point import Moment
from ckptstore.training.session.session import Resume
from ckptstore.validation import check_metric_name, check_run


@dataclass(frozen=True, slots=True, kw_only=True)
class _Note:
    """What is remembered of a save: the value, where it is the best so far, and the batches since the one before."""

    value: float | None
    batches: int


class StoreCheckpoint(ResumingCallback):
    """Save a fit while it runs, and go on with it to the bit when the same script is started again.

    When training begins, the run's newest resume point that is whole is loaded, if there is one: weights, optimizer,
    metrics, random generators, History and the state of the other callbacks; training goes on with the batch behind
    it. A script needs no branch for its first start. Every checkpoint is in the manifest of the store, with its
    position and all metrics, when `fit` goes on behind the save; a crash at any instant leaves all that were saved,
    and the next start goes on from the newest. What cannot be exact is said in a warning at the resume.

    Args:
        directory: The store; str or PathLike, made if there is none.
        monitor: The metric whose best checkpoint always stays.
        verbose: 0 is silent but for one line at a resume, 1 tells of each save.
        save_best_only: Keep only the best checkpoint by `monitor`, and the newest as the resume point.
        save_weights_only: Save weights, optimizer and training state, without the model's configuration; it can be
            resumed from, and loads with ``model.load_weights``.
        mode: ``"min"``, ``"max"``, or ``"auto"`` to tell by the metric.
        save_freq: ``"epoch"``; a number of batches after which to save, counted across epochs; or ``"auto"`` to save as
            often as `max_overhead` allows, measured while training. The end of the last epoch is saved in any case.
        initial_value_threshold: The best to begin with.
        run: The name of the run in the store. Two fits that write at once need two.
        resume: ``"auto"``; ``"must"`` to refuse to begin anew; ``"never"`` to begin anew beside what there is, whose
            checkpoints stay and are not gone back to.
        keep: A retention policy for the run; by default everything stays.
        background: Save beside the training, in a process of its own: a step waits for one copy of the state in memory.
            False to have it wait until each checkpoint is durable.
        backpressure: What happens when saves come faster than the disk takes them, and one is waiting already:
            ``"replace"`` it by the newer, if both were taken within an epoch, or leave the newer out where the one
            that waits is the best and the newer no better; of such saves at most ten a second are committed. Or
            ``"wait"`` for the disk, and leave none out.
        max_overhead: With ``save_freq="auto"``, the share of the run that saving may cost: what steps wait for, what
            those beside a save take longer, and what this callback does without one. An epoch's end that is the best
            so far is saved a little early; where epochs are shorter than the interval that is allowed, some of these
            are not saved.
        save_interval: Save also when so much time has passed since the last save, at the next batch: seconds, or a
            `datetime.timedelta`.
        save_on_exception: Save what is finished when a callback ends the fit by an exception.
        signals: Signals at which to save, at the next batch, and end the process with exit code 75, as
            `ckptstore.TrainingInterrupted` says; empty for none. A second signal ends it at once.
        on_save_error: What happens when the disk fails or is full, after some tries: ``"warn"`` lets training go on
            without that checkpoint, ``"raise"`` ends it.
        max_save_failures: With ``"warn"``, the number of failures in a row that ends the training all the same.

    Raises:
        InvalidArgumentError: (a ValueError) An argument cannot be used; nothing was made on the disk.

    Attributes:
        best: The best value of `monitor` so far, or None.
        last: The checkpoint saved last, or None.
        resumed_from: The checkpoint that the fit went on from, or None.

    Example:
        >>> callback = StoreCheckpoint("runs/digits", monitor="val_accuracy", save_freq=100)
        >>> callback.run
        'default'
    """

    def __init__(  # noqa: PLR0917 - Keras' order
        self,
        directory: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: int | Literal["epoch", "auto"] = "epoch",
        initial_value_threshold: float | None = None,
        *,
        run: str = "default",
        resume: Resume = "auto",
        keep: Policy | None = None,
        background: bool = True,
        backpressure: Backpressure = "replace",
        max_overhead: float = MAX_OVERHEAD,
        save_interval: float | timedelta | None = None,
        save_on_exception: bool = True,
        signals: Sequence[signal.Signals] = STOP_SIGNALS,
        on_save_error: OnSaveError = "warn",
        max_save_failures: int = 3,
    ) -> None:
        check_save_freq(save_freq, auto=True)
        check_max_overhead(max_overhead)
        check_keep(keep)
        check_on_save_error(on_save_error, max_save_failures)
        check_resume(resume)
        super().__init__(
            absolute(directory),
            check_run(run),
            resume=resume,
            signals=signals,
            save_on_exception=save_on_exception,
            failures=SaveFailures(on_save_error, max_save_failures),
            background=background,
            backpressure=backpressure,
        )
        self.monitor = check_metric_name(monitor, "monitor")
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.mode = mode if mode in ("min", "max") else "auto"
        self.save_freq = save_freq
        self.initial_value_threshold = initial_value_threshold
        self.keep = keep
        self.max_overhead = max_overhead
        self.save_interval_s = interval_s(save_interval)
        self.best: float | None = initial_value_threshold
        self.last: Checkpoint | None = None
        self._best_saved = initial_value_threshold
        self._mode: Mode | None = None
        self._batches_since_save = 0
        self._saved_at = 0.0
        self._budget: SaveBudget | None = None
        self._was_saving = False

    @property
    def resumed_from(self) -> Checkpoint | None:
        """The checkpoint that the fit went on from, or None."""
        resumed = None if self._session is None else self._session.resumed
        return None if resumed is None else resumed.checkpoint

    # --- when --------------------------------------------------------------------------------------

    def fit_begins(self, store: CheckpointStore) -> None:
        """Resolve the direction of `monitor`.

        Raises:
            InvalidArgumentError: Only the best is wanted, and nothing tells the direction.
        """
        self._mode = self._direction()
        self.best = self._best_saved = self.initial_value_threshold
        self._batches_since_save = 0
        self._saved_at = time.monotonic()
        self._budget = None
        if self.save_freq == "auto":
            self._budget = SaveBudget(self.max_overhead, nbytes=state_nbytes(self.model))

    def look_after_saves(self) -> None:
        """Hear of saves that are done, and make ready for the first one."""
        preparing = self._saves.to_prepare
        if preparing or self._saves.waiting:
            super().look_after_saves()
        if self._budget is not None:
            self._budget.hook_ends(once=preparing)

    def has_waited(self, seconds: float) -> None:
        """Take it out of what saves may cost."""
        if self._budget is not None:
            self._budget.owe(seconds)

    def _direction(self) -> Mode | None:
        try:
            return monitoring.resolve_mode(self.monitor, self.mode, self.model, callback=type(self).__name__)
        except InvalidArgumentError:
            if self.save_best_only:
                raise
            return None  # a fit without this metric has no best, and is saved all the same

    def due_after(self, batches: int) -> bool:
        """Return whether `save_freq` or `save_interval` asks for a save."""
        self._batches_since_save += batches
        if self._budget is not None:
            return self._is_due_by_budget(self._budget, batches)
        counted = isinstance(self.save_freq, int) and self._batches_since_save >= self.save_freq
        return counted or self._is_time()

    def _is_due_by_budget(self, budget: SaveBudget, batches: int) -> bool:
        quiet = not self._was_saving and not self._saves.waiting and budget.is_quiet(batches)
        # A device may be some steps behind: times are taken where it has caught up, and that not at every batch.
        looking = not quiet and budget.wants_a_look(saving=self._was_saving)
        if looking:
            wait_for_step(self)
        if not quiet:
            budget.batches_done(batches, saving=self._was_saving, computed=looking)
            self._was_saving = self._saves.waiting
        due = (not quiet and not self._was_saving and budget.is_due()) or self._is_time()
        if due and not looking:
            wait_for_step(self)
            budget.batches_done(0, saving=False)
        return due

    def due_at_epoch_end(self, logs: Mapping[str, Any], *, last: bool) -> bool:
        """Return whether to save at an epoch's end; `last` where training ends with it."""
        due = last or self.save_freq == "epoch" or self._is_time()
        if self._budget is not None:
            self._budget.pause()
            early = self._judge(scalars(logs)[0])
            due = due or (not self._saves.waiting and self._budget.is_due(early=early))
        return due

    def _is_time(self) -> bool:
        return self.save_interval_s is not None and time.monotonic() - self._saved_at >= self.save_interval_s

    def progress(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the best value so far, with that of the logs."""
        best = logs[self.monitor] if self._judge(logs) else self.best
        return {"best": best, "monitor": self.monitor, "mode": self._mode}

    def set_progress(self, saved: Mapping[str, Any]) -> None:
        """Take over what `progress` returned; of another measure than that one the store knows the best."""
        live = {"monitor": self.monitor, "mode": self._mode}
        same = all(saved.get(name, value) == value for name, value in live.items())
        self.best = self._best_saved = saved.get("best", self.best) if same else self._best_in_store()

    def _best_in_store(self) -> float | None:
        store, best = self._writer.store, self.initial_value_threshold
        if store is None or self._mode is None:
            return best
        try:
            found = store.best(self.monitor, mode=self._mode, run=self.run)
        except MetricNotFoundError:
            return best
        return best if found is None else better_of(best, found.metrics[self.monitor], self._mode)

    # --- saving ------------------------------------------------------------------------------------

    def save_at(self, moment: Moment) -> bool:
        """Save, or hand over to the process that does; returns whether that was done."""
        metrics, _ = scalars(moment.logs)
        better = self._judge(metrics)
        note = _Note(value=metrics[self.monitor] if better else None, batches=self._batches_since_save)
        self._batches_since_save = 0
        if better:
            self.best = note.value
        handed = self._saves.save(
            self.model,
            note,
            droppable=moment.droppable,
            best=better,
            epoch=moment.epoch,
            batch=moment.batch,
            step=moment.step,
            metrics=metrics,
            keep=self._policy(),
            monitor=None if self._mode is None else (self.monitor, self._mode),
            fit=moment.fit,
            resumable=moment.resumable,
            notes=self._notes(),
            **self.save_options(),
        )
        if not handed:
            if self._budget is not None:
                self._budget.not_saved()
            if not self._batches_since_save:
                # Left out, since the best so far waits for the disk: due again after half the time.
                self._batches_since_save = note.batches // 2
                self._saved_at = time.monotonic() - (self.save_interval_s or 0.0) / 2
            return False
        self._saved_at = time.monotonic()
        if self._budget is not None:
            self._budget.saved()
            self._was_saving = self._saves.waiting
        return True

    def _notes(self) -> dict[str, dict[str, Any]]:
        news = None if self._budget is None else self._budget.news()
        return {} if news is None else {"interval": news.detail()}

    def save_options(self) -> dict[str, Any]:
        """Return what is the same for all saves."""
        return {"format": "weights" if self.save_weights_only else "keras"}

    def settled(self, note: _Note, checkpoint: Checkpoint | None) -> None:
        """Take what is saved as the last, and perhaps as the best; what could not be saved is due again."""
        self._was_saving = self._saves.waiting
        if checkpoint is None:
            self._batches_since_save += note.batches
            self.best = self._best_saved
            if self._budget is not None:
                self._budget.failed()
            return
        self.last = checkpoint
        if self._budget is not None and checkpoint.total_s is not None:
            self._budget.settled(checkpoint.total_s)
            self._budget.owe_processor_time(self._saves.new_start_s())
        if note.value is not None and self._mode is not None:
            self._best_saved = note.value
            self.best = better_of(self.best, note.value, self._mode)
        self._say(checkpoint, note.value)

    def _judge(self, metrics: Mapping[str, float]) -> bool:
        if self._mode is None:
            return False
        return monitoring.judge(metrics.get(self.monitor), self.best, self._mode) is Verdict.BETTER

    def _policy(self) -> Policy | None:
        if self.save_best_only:
            return keep_last(1) if self.keep is None else self.keep
        return self.keep

    def _say(self, saved: Checkpoint, best_value: float | None) -> None:
        if self.verbose > 0:
            best = "" if best_value is None else f", the best {self.monitor} so far: {best_value:.5f}"
            where = "" if saved.batch is None else f", batch {saved.batch + 1}"
            print_message(f"\nEpoch {saved.epoch + 1}{where}: saved as version {saved.version}{best}")


def check_resume(resume: object) -> None:
    """Check the argument of a callback.

    Raises:
        InvalidArgumentError: It is not one of the three.

    Example:
        >>> check_resume("always")
        Traceback (most recent call last):
        ...
        ckptstore.errors.InvalidArgumentError: resume='always': must be 'auto', 'must' or 'never'
    """
    if resume not in ("auto", "must", "never"):
        raise InvalidArgumentError(
            argument="resume", value=resume, reason="must be 'auto', 'must' or 'never'"
        )


def check_max_overhead(max_overhead: object) -> None:
    """Check the argument of a callback.

    Raises:
        InvalidArgumentError: It is no share.

    Example:
        >>> check_max_overhead(3.5)
        Traceback (most recent call last):
        ...
        ckptstore.errors.InvalidArgumentError: max_overhead=3.5: must be a share of the run, above 0 and below 1
    """
    if not isinstance(max_overhead, (int, float)) or not 0 < max_overhead < 1:
        raise InvalidArgumentError(
            argument="max_overhead",
            value=max_overhead,
            reason="must be a share of the run, above 0 and below 1",
        )


def interval_s(interval: float | timedelta | None) -> float | None:
    """Return an interval in seconds.

    Raises:
        InvalidArgumentError: It is not a positive time.

    Example:
        >>> interval_s(timedelta(minutes=10)), interval_s(30), interval_s(None)
        (600.0, 30.0, None)
    """
    if interval is None:
        return None
    try:
        seconds = interval.total_seconds() if isinstance(interval, timedelta) else float(interval)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidArgumentError(
            argument="save_interval",
            value=interval,
            reason="must be a time in seconds, or a timedelta, above zero",
        )
    return seconds
