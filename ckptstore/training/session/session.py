"""The session of a fit: resumes it, asks the schedule when to save, and releases everything at its end.

The hooks of all callbacks are wrapped. So what is saved is the state of all of them after a batch or an epoch, whatever
the position of ours in the list; and what is restored is there before any of them sees the next epoch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ckptstore.keras.private import FitLoop, synced
from ckptstore.keras.state import optimizers
from ckptstore.keras.state.user_state import UserState
from ckptstore.system.messages import held_back
from ckptstore.system.stop_signals import StopRequest
from ckptstore.training.data.replay import DataReplay
from ckptstore.training.data.replay_target import ReplayResult
from ckptstore.training.fingerprint import fingerprint, fit_data
from ckptstore.training.job.fit_store import FitStore
from ckptstore.training.saving.attempt_end import plan_end
from ckptstore.training.saving.saves import Saves
from ckptstore.training.saving.schedule import SaveSchedule
from ckptstore.training.session import messages
from ckptstore.training.session.counted_batches import count_batches
from ckptstore.training.session.end_on_error import EndOnError
from ckptstore.training.session.fit_heartbeat import FitHeartbeat
from ckptstore.training.session.fit_order import fits_on
from ckptstore.training.session.fit_saver import FitParts, FitSaver
from ckptstore.training.session.fit_start import FitStart
from ckptstore.training.session.fit_state import BeforeValidation
from ckptstore.training.session.hooks import wrap_hooks
from ckptstore.training.session.loss_guard import LossGuard
from ckptstore.training.session.position import BatchPosition
from ckptstore.training.session.removed_store import check_store
from ckptstore.training.session.restore import FitToRestore
from ckptstore.training.session.resumed_run import ResumedRun, load_resume_point


class FitSession:
    """A fit that is resumed and saved, from beginning to end.

    Args:
        schedule: Decides when to save.
        saves: Saves.
        stop: Notices signals.
        save_on_exception: Whether to save when a callback or the user ends the fit by an exception.
        losses: Answers losses that went bad.

    Attributes:
        losses: As above; knows which loss stopped the fit.
        position: The position of the fit.
        resumed: What the fit was resumed from, or None.
        replay_result: How the position in the data was reached again, or None.
    """

    def __init__(
        self,
        schedule: SaveSchedule,
        saves: Saves,
        *,
        stop: StopRequest,
        save_on_exception: bool,
        losses: LossGuard,
    ) -> None:
        self._schedule = schedule
        self._saves = saves
        self._stop = stop
        self._save_on_exception = save_on_exception
        self.losses = losses
        self.position = BatchPosition()
        self.resumed: ResumedRun | None = None
        self.replay_result: ReplayResult | None = None
        self._model: Any = None
        self._pending: ResumedRun | None = None
        self._loop: FitLoop | None = None
        self._replay: DataReplay | None = None
        self._user_state: UserState | None = None
        self._fit_saver: FitSaver | None = None
        self._epoch_logs: Mapping[str, Any] | None = None
        self._logs: Mapping[str, Any] = {}
        self._finished = False
        self._is_beginning = True

    # --- beginning ---------------------------------------------------------------------------------

    def begin(self, callback: Any, loop: FitLoop | None, *, start: FitStart) -> None:
        """Open the store, load the resume point, and install the hooks; called in ``on_train_begin``.

        Args:
            callback: The callback that is called, to find its model.
            loop: The loop that calls it; None if it is not Keras' own.
            start: Whether to resume.

        Raises:
            StoreNotFoundError: There is no store, and there must be a resume point; none is begun.
            CheckpointNotFoundError: There is no resume point, and there must be one.
            ModelMismatchError: The resume point is of another model; nothing was changed.
            CheckpointStoreError: As `CheckpointStore` and its `resume`.
        """
        try:
            self._begin(callback, loop, start)
        except BaseException as error:
            self.end(error)
            raise
        finally:
            self._is_beginning = False

    def _begin(self, callback: Any, loop: FitLoop | None, start: FitStart) -> None:
        # Work alone: waiting for a lock, or for a disk, is no cost of saving.
        began = time.thread_time()
        if self._saves.leads:
            check_store(self._saves.path, start.resume)
        store = self._saves.open(callback.params)
        self._model = callback.model
        self._loop = loop
        heartbeat = store.heartbeat(self._saves.run)
        self._heartbeat = FitHeartbeat(heartbeat, self.position, callback.params, is_by_hand=loop is None)
        self._saves.begin(self._model, self._schedule)
        self._saves.unrecorded.replace()
        self._schedule.begin()
        self._user_state = None if self._loop is None else UserState(self._model)
        fingerprint = self._find_resume_point(store, start)
        self._install_hooks(fingerprint)
        self._stop.install()
        if self.resumed is None:
            self._schedule.charge(time.thread_time() - began)

    def _find_resume_point(self, store: FitStore, start: FitStart) -> str:
        """Load the resume point, if there is one; returns the fingerprint of the fit."""
        model, run = self._model, self._saves.run
        live = fingerprint.take(model) | fit_data.part(self._loop)
        # As text: it is in every checkpoint of the fit, and need not be encoded for each.
        fingerprint_text = json.dumps(live)
        if start.resume == "never":
            store.begin(run)
            return fingerprint_text
        if self._loop is not None and self._saves.agreed(store.resume_point(run) is not None):
            self._loop.build()
        self.resumed = self._pending = load_resume_point(store, run, model, live, start, loop=self._loop)
        if self.resumed is None:
            messages.warn_without_state(store.checkpoint_without_state(run))
        else:
            fingerprint_text = json.dumps(live | {optimizers.RATES_IN_USE: self.resumed.rates_in_use})
            messages.warn_other_monitor(self._saves.set_state(self.resumed.values.get("saver", {})))
        return fingerprint_text

    def _install_hooks(self, fingerprint: str) -> None:
        loop, resumed = self._loop, self.resumed
        if loop is None:
            self._fit_saver = FitSaver(self._model, self._saves, self.losses, fingerprint)
            messages.begin_without_loop(resumed, self._model, on_bad_loss=self.losses.answer)
            return
        self._stop.is_polled = loop.is_running
        loop.report_errors(self._saves.training_failed)
        loop.schedule_hooks_without()
        self.losses.begin(self._model, loop, self._saves, self._user_state)
        loop.trace_with_states()
        self.position.per_epoch = loop.data.batches_per_epoch
        alone = self._saves.job is None
        self._replay = DataReplay(loop, partial(self._progress, loop), self._data_failed, compares=alone)
        parts = FitParts(loop=loop, replay=self._replay, user_state=self._user_state)
        self._fit_saver = FitSaver(self._model, self._saves, self.losses, fingerprint, parts)
        hooks: dict[str, Callable[..., None]] = {
            "on_epoch_begin": self._epoch_begins,
            "on_epoch_end": self._epoch_ends,
            "on_train_batch_begin": self._batch_begins,
            "on_train_batch_end": self._batch_ends,
            "on_test_begin": self._test_begins,
            "on_test_batch_end": self._test_batch_ends,
            "on_train_end": self._train_ends,
        }
        wrap_hooks(loop, hooks, self._end_on_error)
        self._heartbeat.watch(loop, is_skipping=self._is_skipping)
        if self._saves.job is not None:
            count_batches(loop, self.position, self._saves.job.counts)
            self._saves.job.leaving.before = self._saves.training_failed
        if resumed is not None:
            self._finished = self._saves.agreed(resumed.is_finished(loop.epochs, loop.others))
            self.position.epoch = resumed.next_epoch - self._finished
            loop.start_at_epoch(loop.epochs if self._finished else resumed.next_epoch)
            if self._saves.leads:
                messages.print_resumed(resumed, finished=self._finished, epochs=loop.epochs)

    @property
    def _saver(self) -> FitSaver:
        assert self._fit_saver is not None
        return self._fit_saver

    # --- epochs ------------------------------------------------------------------------------------

    def _epoch_begins(self, others: Callable[..., None], epoch: int, logs: Any = None) -> None:
        resumed, self._pending = self._pending, None
        if resumed is not None:
            with self._end_on_error:
                self._resume_epoch(resumed, others, epoch, logs)
            return
        began = time.perf_counter()
        with self._end_on_error:
            self.losses.epoch_begins(self.position.step)
            self._saver.epoch_begins(self.position)
        self._schedule.charge(time.perf_counter() - began)
        try:
            others(epoch, logs)
        except BaseException as error:
            self._cannot_begin(error)
            raise
        self.position.begin_epoch(epoch)

    def _cannot_begin(self, error: BaseException) -> None:
        """Save what is finished when a batch or an epoch cannot begin: there, the end of the epoch before."""
        before = self._saver.epoch_end
        if before is not None:
            optimizers.set_learning_rates(synced(self._model), before.rates)
            self.position = before.position
        if before is not None or self.position.batches:
            batch = self.position.batch if before is None else None
            self._save_before_end(error, due=False, batch=batch, logs=self._logs)
        self.end(error)

    def _resume_epoch(self, resumed: ResumedRun, others: Callable[..., None], epoch: int, logs: Any) -> None:
        self._to_restore().begin_epoch(resumed, others, epoch, logs, on_replayed=self._replay_finished)
        self.position.move_to(epoch=epoch, batches=resumed.batches, step=resumed.checkpoint.step)
        self.losses.set_state(
            resumed.values.get("losses", {}), step=self.position.step, in_epoch=resumed.batches > 0
        )
        self.resumed = resumed.without_arrays()

    def _to_restore(self) -> FitToRestore:
        assert self._loop is not None
        assert self._replay is not None
        return FitToRestore(
            model=self._model, loop=self._loop, replay=self._replay, user_state=self._user_state
        )

    def _replay_finished(self, replay_result: ReplayResult) -> None:
        self.replay_result = replay_result
        if self._saves.leads:
            messages.print_replay_result(replay_result)

    def _progress(self, loop: FitLoop, batch: int) -> None:
        loop.show_progress(batch)
        self._stop_on_signal()

    def _epoch_ends(self, others: Callable[..., None], epoch: int, logs: Any = None) -> None:
        self._saver.before_validation, self._epoch_logs = None, None
        try:
            others(epoch, logs)
        except BaseException as error:
            self._call_remaining("on_epoch_end", epoch, error)
            self._saves.epoch_ended(epoch, self.position.step, logs or {})
            due = self._is_due_at_epoch_end(logs or {}, last=False)
            self._save_before_end(error, due=due, batch=None, logs=logs)
            raise
        self._epoch_ended(epoch, self._epoch_logs or logs or {})

    def _epoch_ended(self, epoch: int, logs: Mapping[str, Any]) -> None:
        self._saves.epoch_ended(epoch, self.position.step, logs)
        with self._end_on_error:
            if self._saves.job is not None:
                stops = bool(self._model.stop_training)
                self._model.stop_training = self._saves.job.agree_at_epoch_end(stops)
            last = self._model.stop_training or self._is_last(epoch)
            self._stop.reached(self.position.step, epoch_ended=True)
            due = self._is_due_at_epoch_end(logs, last=last) or self._stop.received is not None
            due = self._saves.agreed(due)
        due, logs = self.losses.epoch_ends(self.position, logs, due=due)
        if due:
            self._save(batch=None, logs=logs, last=last)
        self._logs = logs
        self._stop_on_signal()

    def _is_due_at_epoch_end(self, logs: Mapping[str, Any], *, last: bool) -> bool:
        return self._schedule.due_at_epoch_end(
            last=last, best=self._saves.is_best(logs), saving=self._saves.is_saving
        )

    def _is_last(self, epoch: int) -> bool:
        return self._loop is not None and epoch + 1 >= self._loop.epochs

    # --- batches -----------------------------------------------------------------------------------

    def _is_skipping(self) -> bool:
        return self._replay is not None and self._replay.is_skipping

    def _batch_begins(self, others: Callable[..., None], batch: int, logs: Any = None) -> None:
        if self._is_skipping():
            return
        self.losses.batch_begins()
        try:
            others(batch, logs)
        except BaseException as error:
            self._cannot_begin(error)
            raise
        self._saver.epoch_end = None

    def _batch_ends(self, others: Callable[..., None], batch: int, logs: Any = None) -> None:
        if self._is_skipping():
            if self.resumed is not None and self.resumed.values.get("stopped"):
                self._model.stop_training = True
            return
        saves = self._saves
        try:
            if self._user_state is not None:
                self._user_state.batch_done()
            others(batch, logs)
            due = self._is_due_after(batch)
            self._stop.reached(self.position.step, epoch_ended=False)
            due = due or self._stop.received is not None
            if due and self._loop is not None:
                self._loop.wait_for_callbacks()
        except BaseException as error:
            self._call_remaining("on_train_batch_end", batch, error)
            due = self._is_due_after(batch)
            self._save_before_end(error, due=due, batch=self.position.batch, logs=logs)
            raise
        with self._end_on_error:
            saves.settle()
            preparing = saves.needs_preparation
            if preparing:
                saves.prepare(synced(self._model))
            self._schedule.batch_ends(once=preparing)
            urgent = self._stop.received is not None
            due, logs = self.losses.batch_ends(batch, self.position, logs, due=due, urgent=urgent)
        if due:
            self._save(batch=self.position.batch, logs=logs)
        self._logs = logs or {}
        self._stop_on_signal()

    def _is_due_after(self, batch: int) -> bool:
        return self._schedule.due_after(self.position.batch_done(batch), saving=self._saves.is_saving)

    def _data_failed(self, error: Exception) -> None:
        """Save what is finished when the data raises an error in place of a batch."""
        if self.position.batches and not self._is_skipping():
            self._save_before_end(error, due=False, batch=self.position.batch, logs=self._logs)
        else:
            self.end(error)

    # --- the callback's own hooks ------------------------------------------------------------------

    # The hooks laid over the list of callbacks do the work; in a loop by hand those of `SessionByHand`.

    def on_epoch_begin(self, epoch: int) -> None:
        """Do nothing."""

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None) -> None:
        """Note the logs."""
        self.losses.logs_arrived(batch, logs or {})
        self._heartbeat.logs_arrived(logs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None) -> None:
        """Note the logs, to which other callbacks may add."""
        self.position.ended, self._epoch_logs = True, logs
        self._heartbeat.logs_arrived(logs)

    def on_train_end(self) -> None:
        """Do nothing."""

    # --- validation --------------------------------------------------------------------------------

    def _test_begins(self, others: Callable[..., None], logs: Any = None) -> None:
        with self._end_on_error:
            self._saver.validation_begins()
            others(logs)

    def _test_batch_ends(self, others: Callable[..., None], batch: int, logs: Any = None) -> None:
        with self._end_on_error:
            others(batch, logs)
            if self._stop.received is not None and self._loop is not None:
                self._loop.wait_for_callbacks()
        before = self._saver.before_validation
        if self._stop.received is not None and before is not None:
            if self.position.batches:
                self._save(batch=self.position.batch, logs=self._logs, before=before)
            self._stop_on_signal()

    # --- saving ------------------------------------------------------------------------------------

    def _save(
        self,
        *,
        batch: int | None,
        logs: Any,
        before: BeforeValidation | None = None,
        end: bool = False,
        last: bool = False,
    ) -> None:
        if self._saver.is_saved(self.position, batch) or self.losses.refuses_save(logs):
            return
        with self._end_on_error, held_back(may_raise=self._stop.received is None):
            end = end or self._stop.received is not None
            self._saver.save(self.position, batch=batch, logs=logs, before=before, end=end, last=last)

    # --- the end -----------------------------------------------------------------------------------

    def _stop_on_signal(self) -> None:
        if self._stop.received is None:
            return
        if self._saves.leads:
            messages.print_stopped(self._stop.received, self._saves.path)
        self.end()
        self._stop.deliver()

    @property
    def _end_on_error(self) -> EndOnError:
        """Releases everything if its block raises."""
        return EndOnError(self.end)

    def _call_remaining(self, hook: str, number: int, error: BaseException) -> None:
        if self._loop is not None:
            self._loop.call_remaining(hook, number, error)

    def _save_before_end(self, error: BaseException, *, due: bool, batch: int | None, logs: Any) -> None:
        """Save what is finished, since an exception is about to end the fit; a failure becomes a note on it."""
        # Of `train.py | tee log` the signal has ended both; that Keras cannot print is no reason to end otherwise.
        is_stopped = self._stop.received is not None and isinstance(error, BrokenPipeError)
        try:
            # One process of several cannot save alone.
            if self._saves.job is None and (self._save_on_exception or due or is_stopped):
                with held_back(may_raise=False):
                    self._save(batch=batch, logs=logs, end=True)
        except Exception as failure:
            error.add_note(f"the save at the end failed too: {failure}")
            is_stopped = False
        finally:
            self.end(error)
        if is_stopped:
            self._stop.deliver()

    def _train_ends(self, others: Callable[..., None], logs: Any = None) -> None:
        resumed, self._pending = self._pending, None
        if resumed is not None and self._loop is not None:
            self._to_restore().load_finished(resumed)  # not one epoch was left
        with self._end_on_error:
            others(logs)
        self._stop_on_signal()
        is_sound = plan_end(self._saves, self._logs, self._model, bad=self.losses.end_detail)
        complete = self._is_last(self.position.epoch) and is_sound
        self.end()
        self._saves.fit_ended(complete=complete)
        fits_on(self._saves.path).complete(self._saves.run)
        # A signal that came while the last saves were waited for.
        self._stop.deliver()

    @property
    def is_open(self) -> bool:
        """True while the fit is running."""
        return self._saves.store is not None

    @property
    def is_running(self) -> bool:
        """True while the fit is on the stack of a thread; an exception may have ended it unnoticed."""
        if self._is_beginning:
            return True
        return self.is_open and self._loop is not None and self._loop.is_on_a_stack

    def end(self, error: BaseException | None = None) -> None:
        """Release the fit, the run and the store; may be repeated."""
        # The callback may live long: what the fit trained on, and its loader's processes, must not.
        loop, resumed = self._loop, self._pending
        self._loop = self._pending = self._replay = self._user_state = None
        if self._fit_saver is not None:
            self._fit_saver.release()
        self.losses.end()
        if loop is not None:
            if resumed is not None:
                loop.restore_initial_epoch()
            loop.release()
        self.resumed = self.resumed and self.resumed.without_arrays()
        with held_back(may_raise=error is None and self._stop.received is None):
            try:
                self._saves.end(error)
            except Exception as failure:
                # The fit had come to its end, and was to be recorded as finished.
                self._saves.training_failed(failure)
                raise
            finally:
                self._stop.uninstall()
                self._stop.is_polled = None
                self._saves.close(error, signal=self._stop.received)
