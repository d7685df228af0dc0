"""`StoreCheckpoint`: saves a fit into a store, and resumes it when the script is started again."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Literal

from ckptstore.background.save_queue import Backpressure
from ckptstore.distributed.job import Job
from ckptstore.errors import InvalidArgumentError, SeveralProcessesError
from ckptstore.keras.private import unsynced_model, wait_for_step
from ckptstore.keras.state.arrays import state_nbytes
from ckptstore.records import Checkpoint
from ckptstore.retention import Policy, keep_last
from ckptstore.system import messages
from ckptstore.system.stop_signals import STOP_SIGNALS
from ckptstore.training.resuming_callback import ResumingCallback
from ckptstore.training.saving.arguments import (
    OnSaveError,
    Resume,
    check_directory,
    check_keep,
    check_max_overhead,
    check_on_save_error,
    check_resume,
    check_save_freq,
    interval_s,
)
from ckptstore.training.saving.failures import SaveFailures
from ckptstore.training.saving.monitor import MonitoredMetric
from ckptstore.training.saving.overhead_budget import MAX_OVERHEAD
from ckptstore.training.saving.saves import SaveSettings
from ckptstore.training.saving.schedule import AnySchedule, EveryInterval, SaveSchedule, WithinOverhead, every
from ckptstore.training.session.loss_guard import LossGuard, OnBadLoss, check_on_bad_loss
from ckptstore.validation import check_metric_name, check_run


class StoreCheckpoint(ResumingCallback):
    """Save a fit while it runs, and resume it to the bit when the same script is started again.

    When training begins, the run's newest resume point that is intact is loaded, if there is one: weights, optimizer,
    metrics, random generators, History and the state of the other callbacks; training continues with the next
    batch. A script needs no branch for its first start. Every checkpoint is in the manifest of the store, with its
    position and all metrics, when `fit` continues after the save; a crash at any instant leaves all that were saved,
    and the next start resumes from the newest. A warning at the resume names what cannot be exact.

    Any model that Keras trains will do. One whose configuration Keras cannot make is saved as weights with optimizers
    and training state, and a warning before training says so.

    Where several processes train one model together, as after `jax.distributed.initialize`, each has this callback with
    the same options, and each checkpoint has what all of them hold. A thread saves in the background there,
    `backpressure` is ``"wait"``, and nothing is saved on an exception; the guide's page ``several-processes`` has what
    is refused.

    Args:
        directory: The store; str or PathLike, made if there is none. ``~`` is not expanded, but refused.
        monitor: The metric whose best epoch's end is always saved, and always stays. A warning says so if it is not
            among the metrics of the first epoch.
        verbose: 0 is silent but for one line at a resume, 1 prints a line for each save.
        save_best_only: Keep only the best checkpoint by `monitor`, and the newest as the resume point.
        save_weights_only: Save weights, optimizer and training state, without the model's configuration; it can be
            resumed from, and loads with ``model.load_weights``.
        mode: ``"min"``, ``"max"``, or ``"auto"`` to decide by the metric.
        save_freq: How often to save at least: ``"epoch"``; a number of batches after which to save, counted across
            epochs; or ``"auto"`` for as often as `max_overhead` allows, measured while training. Besides, whatever it
            is, an epoch's end is saved at which `monitor` is the best so far, and that of the last epoch; and the
            metrics of every epoch are recorded with the next save.
        initial_value_threshold: The best to begin with.
        run: The name of the run in the store. By default it follows the order of the fits that this process makes on
            the store: ``"default"``, ``"default-2"``, and so on; a fit that an exception or an interrupt ended keeps
            its place, and the next fit resumes it. So the same script, started again, gives each fit its run again.
            Copies of the callback are counted too. A finished run that meets a fit with other hyperparameters or
            data is a `RunMismatchError`. Fits that run at once, or one inside another, need names.
        resume: ``"auto"``; ``"must"`` to refuse to start without a store and a resume point; ``"never"`` to start again
            beside the checkpoints that there are, which stay and are not resumed.
        keep: A retention policy for the run; by default everything stays.
        background: Save in the background, in a process of its own: a step waits for one copy of the state in memory.
            False to have it wait until each checkpoint is durable.
        backpressure: What happens when saves come faster than the disk takes them, and one is waiting already:
            ``"replace"`` it by the newer, if both were taken within an epoch, or leave the newer out where the one
            that waits is the best and the newer no better; of such saves at most ten a second are committed. Or
            ``"wait"`` for the disk, and leave none out.
        max_overhead: With ``save_freq="auto"``, the share of the run that saving may cost: the time that steps wait,
            what steps during a save take longer, and the work of this callback without a save. An epoch's end that is
            the best so far is saved at any cost: where such epochs are shorter than the interval, saving takes more
            than this share. It is not made up for afterwards, when saves come as often as before.
        save_interval: Save also when so much time has passed since the last save, at the next batch: seconds, or a
            `datetime.timedelta`.
        save_on_exception: Save what is finished when a callback ends the fit by an exception.
        signals: Signals at which to save, at the next batch, and end the process with exit code 75, as
            `ckptstore.TrainingInterrupted` describes; empty for none. A second signal ends it at once.
        on_save_error: What happens when the disk fails or is full, after some tries: ``"warn"`` lets training
            continue without that checkpoint, ``"raise"`` ends it.
        max_save_failures: With ``"warn"``, the number of failures in a row that ends the training anyway.
        on_bad_loss: What happens when a loss is NaN or infinite, or spikes (the guide's page ``bad-losses`` has the
            bound), and when the validation's loss is not finite; None does not look. ``"warn"`` says so and trains on.
            ``"stop"`` ends the fit as it is and saves none of it. ``"rollback"`` goes back to the newest resume point
            from before and continues with the data behind the bad batch: the batches between are skipped, in this
            process and in every one that resumes later.
        max_rollbacks: With ``"rollback"``, the most of a run; then the fit stops.

    Raises:
        InvalidArgumentError: (a ValueError) An argument cannot be used; nothing was made on the disk.

    Attributes:
        best: The best value of `monitor` so far, or None.
        last: The checkpoint saved last, or None.
        run: The name of the run; None before the first fit if none was given.
        resumed_from: The checkpoint that the fit was resumed from, or None.

    Example:
        >>> callback = StoreCheckpoint("runs/digits", monitor="val_accuracy", save_freq=100)
        >>> callback.store_path.name, callback.run
        ('digits', None)
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
        run: str | None = None,
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
        on_bad_loss: OnBadLoss | None = None,
        max_rollbacks: int = 3,
    ) -> None:
        check_save_freq(save_freq, auto=True)
        check_max_overhead(max_overhead)
        check_keep(keep)
        check_on_save_error(on_save_error, max_save_failures)
        check_resume(resume)
        check_on_bad_loss(on_bad_loss, max_rollbacks)
        super().__init__(
            check_directory(directory),
            None if run is None else check_run(run),
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
        self.on_bad_loss: OnBadLoss | None = on_bad_loss
        self.max_rollbacks = max_rollbacks
        self.save_interval_s = interval_s(save_interval)
        self._saves.monitored = self._monitored()

    @property
    def best(self) -> float | None:
        """The best value of `monitor` so far, or None."""
        return None if self._saves.monitored is None else self._saves.monitored.best

    @property
    def resumed_from(self) -> Checkpoint | None:
        """The checkpoint that the fit was resumed from, or None."""
        resumed = None if self._session is None else self._session.resumed
        return None if resumed is None else resumed.checkpoint

    def _check_job(self, job: Job) -> None:
        """Refuse what depends on the clock, or on the losses, of one process."""
        for argument, is_refused, instead in (
            ("save_freq", self.save_freq == "auto", "a number of batches, or 'epoch'"),
            ("save_interval", self.save_interval_s is not None, "save_freq, a number of batches"),
            ("on_bad_loss", self.on_bad_loss is not None, "keras.callbacks.TerminateOnNaN()"),
        ):
            if is_refused:
                raise SeveralProcessesError(
                    operation=f"StoreCheckpoint({argument}=...)",
                    by=job.by,
                    processes=job.processes,
                    process=job.process,
                    hint=f"all must save after the same batch: {instead}: ckptstore guide several-processes",
                )

    def _equal_options(self) -> dict[str, Any]:
        return super()._equal_options() | {
            "save_freq": self.save_freq,
            "save_best_only": self.save_best_only,
            "save_weights_only": self.save_weights_only,
        }

    def _loss_guard(self) -> LossGuard:
        return LossGuard(self.on_bad_loss, self.max_rollbacks)

    def _begin_fit(self) -> SaveSchedule:
        """Set what the saves of a fit have in common; returns when to save.

        Raises:
            InvalidArgumentError: Only the best is wanted, and nothing tells the direction of `monitor`.
        """
        self._saves.settings = SaveSettings(
            format="weights" if self.save_weights_only else "keras",
            keep=keep_last(1) if self.save_best_only and self.keep is None else self.keep,
            verbose=self.verbose,
            best_only=self.save_best_only,
        )
        self._saves.monitored = self._monitored()
        try:
            self._saves.monitored.resolve(self.model)
        except InvalidArgumentError:
            if self.save_best_only:
                raise
            # The fit is saved anyway; it only has no best.
            messages.warn(
                f"nothing tells whether a lower or a higher {self.monitor} is better, so that no checkpoint counts as "
                "the best: pass mode='min' or mode='max'",
                UserWarning,
            )
        schedule = self._by_save_freq()
        return (
            schedule
            if self.save_interval_s is None
            else AnySchedule(EveryInterval(self.save_interval_s), schedule)
        )

    def _by_save_freq(self) -> SaveSchedule:
        if self.save_freq != "auto":
            return every(self.save_freq, by_outcome=self._saves.job is None)
        return WithinOverhead(
            self.max_overhead,
            nbytes=state_nbytes(self.model),
            wait_for_device=partial(wait_for_step, unsynced_model(self)),
        )

    def _monitored(self) -> MonitoredMetric:
        return MonitoredMetric(
            self.monitor,
            self.mode,
            threshold=self.initial_value_threshold,
            callback=type(self).__name__,
        )
