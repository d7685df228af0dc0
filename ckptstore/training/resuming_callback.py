"""Base of the callbacks that resume: forwards Keras' hooks to the session of the running fit."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from ckptstore.background.save_queue import Backpressure
from ckptstore.distributed.job import Job
from ckptstore.errors import SeveralProcessesError
from ckptstore.keras.model.processes import job_of, refuse_save_by_all
from ckptstore.keras.private import FitLoop, preemption_signals, running_fit, running_loop
from ckptstore.system.stop_signals import StopRequest
from ckptstore.training.job.fit_job import FitJob, refuse_unequal_replicas
from ckptstore.training.job.job_stop import JobStop
from ckptstore.training.saving.arguments import Resume, check_background, refuse_second_resume
from ckptstore.training.saving.failures import SaveFailures
from ckptstore.training.saving.saves import Saves
from ckptstore.training.saving.schedule import SaveSchedule
from ckptstore.training.saving_callback import SavingCallback
from ckptstore.training.session import messages
from ckptstore.training.session.by_hand import SessionByHand
from ckptstore.training.session.fit_order import FIRST_RUN, fits_on
from ckptstore.training.session.fit_start import FitStart
from ckptstore.training.session.loss_guard import LossGuard
from ckptstore.training.session.session import FitSession


class ResumingCallback(SavingCallback, keras.callbacks.Callback):
    """A callback that saves a fit, and resumes it in another process; see `ckptstore.training.session.session`.

    Args:
        path: The store's directory, absolute.
        run: The run; None for a run named by the order of the fits, see `ckptstore.training.session.fit_order`.
        resume: What to do with a resume point, see `FitSession`.
        signals: Signals at which to save and stop.
        save_on_exception: Whether to save when an exception ends the fit.
        failures: Handles failed saves.
        background: Whether to save in the background.
        backpressure: What to do when saves come faster than the disk takes them.
    """

    def __init__(
        self,
        path: Path,
        run: str | None,
        *,
        resume: Resume,
        signals: Sequence[signal.Signals],
        save_on_exception: bool,
        failures: SaveFailures,
        background: bool,
        backpressure: Backpressure,
    ) -> None:
        super().__init__()
        check_background(background, backpressure)
        self.run = run
        self._is_named = run is not None
        self._resume: Resume = resume
        self._signals = tuple(signals)
        self._save_on_exception = save_on_exception
        self._saves = Saves(path, run or "", failures, background=background, backpressure=backpressure)
        self._session: FitSession | None = None
        self._stop: StopRequest | None = None

    def _begin_fit(self) -> SaveSchedule:
        """Set what the saves of a fit have in common; returns when to save."""
        raise NotImplementedError

    def _loss_guard(self) -> LossGuard:
        """Return what watches the losses of a fit; by default nothing does."""
        return LossGuard()

    # --- Keras' hooks ------------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Open the store, finish what a crash left, take the run, and resume it from its resume point.

        Raises:
            SeveralProcessesError: Several processes train the model together, and this callback, or what it is asked
                for, works in one alone; nothing was opened.
            JobIncompleteError: Not all of these processes have begun the fit; nothing was opened.
            InvalidArgumentError: Another callback of this fit resumes it already; nothing was opened.
            CheckpointStoreError: As `CheckpointStore` and its `resume`; nothing of the model was changed.
        """
        found, loop = job_of(self.model), running_fit(self)
        if found is not None:
            self._check_job(found)
            refuse_unequal_replicas(self, found, is_fit=loop is not None)
            if self.model.built:
                refuse_save_by_all(self.model, "sharded", found)
        refuse_second_resume(self, is_resumed=loop is not None and loop.is_hooked)
        if self._session is not None:
            self._session.end()
        if found is None:
            self._saves.job = None
            self._begin(loop, None)
            return
        with self._noting_signals():
            self._begin_together(loop, found)

    def _noting_signals(self) -> StopRequest:
        """Return a request for what a backend watches for itself; the fit sees what comes before it has its own."""
        watched = preemption_signals(keras.backend.backend())
        return StopRequest([number for number in watched if number in self._signals], takes_over=watched)

    def _begin_together(self, loop: FitLoop | None, found: Job) -> None:
        self._saves.job = job = FitJob.meet(found, "fit")
        try:
            job.require_equal(self._equal_options())
            self._begin(loop, job)
        except BaseException as error:
            job.give_up(error)
            job.close()
            raise

    def _begin(self, loop: FitLoop | None, job: FitJob | None) -> None:
        session = (SessionByHand if loop is None else FitSession)(
            self._begin_fit(),
            self._saves,
            stop=self._stop_request(job),
            save_on_exception=self._save_on_exception,
            losses=self._loss_guard(),
        )
        start = self._choose_run(session)
        self._session = session
        session.begin(self, loop, start=start)

    def _equal_options(self) -> dict[str, Any]:
        """Return the options that all processes of a fit must have, by name."""
        params = self.params or {}
        # Where they differ, a process would wait in a step for one that has finished.
        numbers = {"epochs": params.get("epochs"), "steps_per_epoch": params.get("steps")}
        return {"run": self.run if self._is_named else None, "resume": self._resume, **numbers}

    def _check_job(self, job: Job) -> None:
        """Refuse what several processes cannot do together; asks no other process, since all refuse the same.

        Raises:
            SeveralProcessesError: By default, any fit.
        """
        raise SeveralProcessesError(
            operation=type(self).__name__, by=job.by, processes=job.processes, process=job.process
        )

    def _choose_run(self, session: FitSession) -> FitStart:
        """Name the run by the order of the fits, if the user has not; returns how to begin it."""
        fits = fits_on(self.store_path)
        if self._is_named:
            return FitStart(resume=self._resume, allows_other_values=not fits.has_completed(self._saves.run))
        self.run = fits.begin_unnamed(session)
        self._saves.use_run(self.run)
        if self.run == FIRST_RUN:
            return FitStart(resume=self._resume, allows_other_values=False)
        if not fits.is_explained:
            fits.is_explained = True
            messages.print_later_fit(self.run)
        # A script that was killed in its first fit has nothing to resume its later ones from.
        return FitStart(resume="auto" if self._resume == "must" else self._resume, allows_other_values=False)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Tell the session."""
        if self._session is not None:
            self._session.on_epoch_begin(epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if a save is due."""
        if self._session is not None:
            self._session.on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if a save is due."""
        if self._session is not None:
            self._session.on_epoch_end(epoch, logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Release the run and the store."""
        if self._session is not None:
            self._session.on_train_end()

    # Outside of a fit there is nothing to save, and a signal that has come ends the loop.

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Listen for signals during an evaluation by itself."""
        self._listen()

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stop if a signal has come."""
        self._stop_if_asked()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stop listening."""
        self._stop_listening()

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Listen for signals during a prediction."""
        self._listen()

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stop if a signal has come."""
        self._stop_if_asked()

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stop listening."""
        self._stop_listening()

    def _stop_request(self, job: FitJob | None = None) -> StopRequest:
        # JAX's own service would only note the signal, and the process would live until the cluster kills it.
        takes_over = preemption_signals(keras.backend.backend())
        if job is None:
            return StopRequest(self._signals, takes_over=takes_over)
        return JobStop(job.stop, self._signals, check=job.watch.check, takes_over=takes_over)

    def _listen(self) -> None:
        if self._session is None or not self._session.is_open:
            # An exception may have ended a call before, and may end this one, without a word to its callbacks.
            self._stop_listening()
            self._stop = self._stop_request()
            self._stop.is_polled = running_loop(self)
            self._stop.install()

    def _stop_if_asked(self) -> None:
        stop = self._stop
        if stop is not None and stop.received is not None:
            self._stop_listening()
            stop.deliver()

    def _stop_listening(self) -> None:
        stop, self._stop = self._stop, None
        if stop is not None:
            stop.uninstall()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running fit out: a copy begins its own, in another process or next to the original."""
        return {**super().__getstate__(), "_session": None, "_stop": None}
