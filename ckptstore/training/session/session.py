"""One fit from its beginning to its end: goes on from a resume point, says when to save, lets go of everything.

The hooks of all callbacks are wrapped, so that what is saved is what they all are after a batch or an epoch, whichever
place in the list this one has; and so that what is put back is there before any of them sees the next epoch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from ckptstore.errors import CheckpointNotFoundError
from ckptstore.formats.snapshot import FitState, VariableKinds
from ckptstore.keras.private import FitLoop, running_fit, synced_train_state, wait_for_step
from ckptstore.keras.state import callbacks, optimizers
from ckptstore.store.store import CheckpointStore
from ckptstore.system.stop_signals import StopRequest
from ckptstore.training.data.replay import Arrival, Iteration
from ckptstore.training.fingerprint import fingerprint
from ckptstore.training.saving.arguments import refuse_a_second
from ckptstore.training.saving.run_writer import RunWriter
from ckptstore.training.session import messages
from ckptstore.training.session.epoch_end import EpochEnd, Guard
from ckptstore.training.session.fit_state import moment_of, values_of
from ckptstore.training.session.position import FitPosition
from ckptstore.training.session.resumed_run import ResumedRun, load_resume_point
from ckptstore.training.session.save_point import Frozen, Saver, plain_logs

Resume = Literal["auto", "must", "never"]


class FitSession:
    """One fit of one callback.

    Args:
        saver: The callback.
        writer: Opens the store that it writes to.
        resume: ``"auto"`` goes on from the newest resume point if there is one, ``"must"`` refuses to begin anew,
            ``"never"`` begins anew beside what there is.
        stop: Notices signals.
        save_on_exception: Whether to save when a callback or the user ends the fit by an exception.
    """

    def __init__(
        self, saver: Saver, writer: RunWriter, *, resume: Resume, stop: StopRequest, save_on_exception: bool
    ) -> None:
        self._saver = saver
        self._writer = writer
        self._resume = resume
        self._stop = stop
        self._save_on_exception = save_on_exception
        self.position = FitPosition()
        self.resumed: ResumedRun | None = None
        self.arrival: Arrival | None = None
        self._pending: ResumedRun | None = None
        self._loop: FitLoop | None = None
        self._iteration: Iteration | None = None
        self._fingerprint = ""
        self._frozen: Frozen | None = None
        self._epoch_end: EpochEnd | None = None
        self._saved: tuple[int, int | None] | None = None
        self._epoch_logs: Mapping[str, Any] | None = None
        self._logs: Mapping[str, Any] = {}
        self._finished = False
        self._is_by_hand = False

    # --- beginning ---------------------------------------------------------------------------------

    def begin(self) -> CheckpointStore:
        """Open the store, load the resume point, and lay the hooks; called in ``on_train_begin``.

        Raises:
            CheckpointNotFoundError: There is no resume point, and there must be one.
            ModelMismatchError: The resume point is of another model; nothing was changed.
            CheckpointStoreError: As `CheckpointStore` and its `resume` say.
        """
        store = self._writer.open(self._saver.params, before=partial(self._saver.saves_end, None))
        try:
            self._loop = running_fit(self._saver)
            self._is_by_hand = self._loop is None
            refuse_a_second(self._saver, self._loop is not None and self._loop.is_hooked)
            self._saver.saves_begin(store)
            self._saver.fit_begins(store)
            self._find_resume_point(store)
            self._lay_hooks()
            self._stop.install()
        except BaseException as error:
            self.end(error)
            raise
        return store

    def _find_resume_point(self, store: CheckpointStore) -> None:
        model, run = self._saver.model, self._writer.run
        live = fingerprint.take(model)
        # As text: it stands in every checkpoint of the fit, and is not taken apart for each.
        self._fingerprint = json.dumps(live)
        if self._resume == "never":
            store.begin(run)
            return
        if self._loop is not None and store.resume_point(run) is not None:
            self._loop.build()
        self.resumed = self._pending = load_resume_point(store, run, model, live)
        if self.resumed is None and self._resume == "must":
            raise CheckpointNotFoundError(ref="resume-point", store=store.path)
        if self.resumed is not None:
            self._saver.set_progress(self.resumed.values.get("saver", {}))

    def _lay_hooks(self) -> None:
        loop, resumed = self._loop, self.resumed
        if loop is None:
            messages.say_without_loop(resumed, self._saver.model)
            return
        self._stop.is_polled = loop.is_running
        loop.schedule_hooks_without(self._saver)
        self.position.per_epoch = loop.data.batches_per_epoch
        self._iteration = Iteration(loop, partial(self._progress, loop), self._data_failed)
        for name, method in (
            ("on_epoch_begin", self._epoch_begins),
            ("on_epoch_end", self._epoch_ends),
            ("on_train_batch_begin", self._batch_begins),
            ("on_train_batch_end", self._batch_ends),
            ("on_test_begin", self._test_begins),
            ("on_test_batch_end", self._test_batch_ends),
            ("on_train_end", self._train_ends),
        ):
            loop.wrap_method(loop.callbacks, name, partial(partial, method))
        for name in ("on_test_batch_begin", "on_test_end"):
            loop.wrap_method(loop.callbacks, name, self._guard)
        for one in loop.callbacks_after(self._saver):
            loop.wrap_method(one, "on_train_begin", self._guard)
        if resumed is not None:
            self._finished = resumed.leaves_nothing(loop.epochs, self._siblings())
            self.position.epoch = resumed.next_epoch - self._finished
            loop.start_at_epoch(loop.epochs if self._finished else resumed.next_epoch)
            messages.say_resumed(resumed, finished=self._finished, epochs=loop.epochs)

    def _siblings(self) -> list[Any]:
        assert self._loop is not None
        return [one for one in self._loop.callbacks.callbacks if one is not self._saver]

    # --- epochs ------------------------------------------------------------------------------------

    def _epoch_begins(self, others: Callable[..., None], epoch: int, logs: Any = None) -> None:
        resumed, self._pending = self._pending, None
        if resumed is not None:
            with self._guard:
                self._go_on(resumed, others, epoch, logs)
            return
        began = time.perf_counter()
        with self._guard:
            assert self._iteration is not None
            self._epoch_end = EpochEnd.of(self._saver.model, self.position, self._siblings(), self._iteration)
        self._saver.has_waited(time.perf_counter() - began)
        try:
            others(epoch, logs)
        except BaseException as error:
            self._cannot_begin(error)
            raise
        self.position.begin_epoch(epoch)

    def _cannot_begin(self, error: BaseException) -> None:
        """Save what is finished when a batch or an epoch cannot begin: there, the end of the epoch before."""
        before = self._epoch_end
        if before is not None:
            optimizers.set_learning_rates(self._saver.model, before.rates)
            self.position = before.position
        if before is not None or self.position.batches:
            batch = self.position.batch if before is None else None
            self._save_before_end(error, due=False, batch=batch, logs=self._logs)
        self.end(error)

    def _go_on(self, resumed: ResumedRun, others: Callable[..., None], epoch: int, logs: Any) -> None:
        assert self._loop is not None
        self._loop.restore_initial_epoch()
        resumed.refuse_other_epoch(epoch)
        if resumed.batches:
            # Those that keep no state of their own are new, and have to see the epoch begin.
            for one in self._siblings():
                if not callbacks.has_own_state(one):
                    one.on_epoch_begin(epoch, logs)
        self._put_back(resumed)
        self.resumed = resumed.settled()
        if not resumed.batches:
            others(epoch, logs)
        self.position.stand_at(epoch=epoch, batches=resumed.batches, step=resumed.checkpoint.step)

    def _put_back(self, resumed: ResumedRun) -> None:
        assert self._iteration is not None
        model = self._saver.model
        resumed.load_again(model)
        messages.say_left_out(resumed.put_back_callbacks(self._siblings()))
        resumed.put_back_generators()
        messages.say_doubts(self._iteration.go_to(resumed.target(self._arrived)))

    def _arrived(self, arrival: Arrival) -> None:
        self.arrival = arrival
        messages.say_arrived(arrival)

    def _progress(self, loop: FitLoop, batch: int) -> None:
        loop.show_progress(batch)
        self._obey_signal()

    def _epoch_ends(self, others: Callable[..., None], epoch: int, logs: Any = None) -> None:
        self._frozen, self._epoch_logs = None, None
        try:
            others(epoch, logs)
        except BaseException as error:
            self._call_the_rest("on_epoch_end", epoch, error)
            due = self._saver.due_at_epoch_end(logs or {}, last=False)
            self._save_before_end(error, due=due, batch=None, logs=logs)
            raise
        self._epoch_ended(epoch, self._epoch_logs or logs or {})

    def _epoch_ended(self, epoch: int, logs: Mapping[str, Any]) -> None:
        last = self._saver.model.stop_training or self._is_last(epoch)
        if self._saver.due_at_epoch_end(logs, last=last) or self._stop.received is not None:
            self._save(batch=None, logs=logs)
        self._logs = logs
        self._obey_signal()

    def _is_last(self, epoch: int) -> bool:
        return self._loop is not None and epoch + 1 >= self._loop.epochs

    # --- batches -----------------------------------------------------------------------------------

    def _is_passing_over(self) -> bool:
        return self._iteration is not None and self._iteration.passing_over

    def _batch_begins(self, others: Callable[..., None], batch: int, logs: Any = None) -> None:
        if self._is_passing_over():
            return
        try:
            others(batch, logs)
        except BaseException as error:
            self._cannot_begin(error)
            raise
        self._epoch_end = None

    def _batch_ends(self, others: Callable[..., None], batch: int, logs: Any = None) -> None:
        if self._is_passing_over():
            if self.resumed is not None and self.resumed.values.get("stopped"):
                self._saver.model.stop_training = True
            return
        try:
            others(batch, logs)
            due = self._saver.due_after(self.position.batch_done(batch)) or self._stop.received is not None
            if due and self._loop is not None:
                self._loop.wait_for_callbacks()
        except BaseException as error:
            self._call_the_rest("on_train_batch_end", batch, error)
            due = self._saver.due_after(self.position.batch_done(batch))
            self._save_before_end(error, due=due, batch=self.position.batch, logs=logs)
            raise
        with self._guard:
            self._saver.look_after_saves()
        if due:
            self._save(batch=self.position.batch, logs=logs)
        self._logs = logs or {}
        self._obey_signal()

    def _data_failed(self, error: Exception) -> None:
        """Save what is finished when the data raises in the place of a batch."""
        if self.position.batches and not self._is_passing_over():
            self._save_before_end(error, due=False, batch=self.position.batch, logs=self._logs)
        else:
            self.end(error)

    # --- loops that are not Keras' own -------------------------------------------------------------

    def epoch_begins_elsewhere(self, epoch: int) -> None:
        """Note where training is."""
        if self._is_by_hand:
            self.position.begin_epoch(epoch)

    def batch_ends_elsewhere(self, batch: int, logs: Mapping[str, Any] | None) -> None:
        """Save if it is time."""
        if self._is_by_hand:
            self._batch_ends(lambda *_: None, batch, logs)

    def note_epoch_logs(self, epoch: int, logs: Mapping[str, Any] | None) -> None:
        """Remember the logs as callbacks see them, and add to them; save if it is time and nobody else says so."""
        self._epoch_logs = logs
        if self._is_by_hand:
            self._epoch_ended(epoch, logs or {})

    def train_ends_elsewhere(self) -> None:
        """Let go of everything."""
        if self._is_by_hand:
            self._train_ends(lambda *_: None)

    # --- validation --------------------------------------------------------------------------------

    def _test_begins(self, others: Callable[..., None], logs: Any = None) -> None:
        with self._guard:
            self._frozen = Frozen.of(self._saver.model)
            others(logs)

    def _test_batch_ends(self, others: Callable[..., None], batch: int, logs: Any = None) -> None:
        with self._guard:
            others(batch, logs)
            if self._stop.received is not None and self._loop is not None:
                self._loop.wait_for_callbacks()
        if self._stop.received is not None and self._frozen is not None:
            if self.position.batches:
                self._save(batch=self.position.batch, logs=self._logs, frozen=self._frozen)
            self._obey_signal()

    # --- saving ------------------------------------------------------------------------------------

    def _save(self, *, batch: int | None, logs: Any, frozen: Frozen | None = None, end: bool = False) -> None:
        if self._saved == (self.position.epoch, batch):
            return
        with self._guard:
            end = end or self._stop.received is not None
            with synced_train_state(self._saver, keep=end) as kinds:
                # Until here a device may still compute. What is measured of a save begins behind it.
                wait_for_step(self._saver)
                numbers = plain_logs(logs or {})
                fit = self._state(batch, numbers, frozen or Frozen(), kinds)
                if self._saver.save_at(moment_of(self.position, batch, numbers, fit, last=end)):
                    self._saved = (self.position.epoch, batch)

    def _state(self, batch: int | None, logs: Any, frozen: Frozen, kinds: VariableKinds | None) -> FitState:
        values: dict[str, Any] = {"fingerprint": self._fingerprint, "logs": dict(logs)}
        if self._iteration is not None:
            parts = self._saver, self._siblings(), self._iteration, logs
            values |= values_of(*parts, in_epoch=batch is not None, kinds=kinds)
        if self._epoch_end is not None:
            values |= self._epoch_end.values
            frozen = Frozen(generators=self._epoch_end.generators)
        return frozen.state(values, kinds)

    # --- the end -----------------------------------------------------------------------------------

    def _obey_signal(self) -> None:
        if self._stop.received is None:
            return
        messages.say_stopped(self._stop.received, self._writer.path)
        self.end()
        self._stop.deliver()

    @property
    def _guard(self) -> Guard:
        """Lets go of everything when its block raises."""
        return Guard(self.end)

    def _call_the_rest(self, hook: str, number: int, error: BaseException) -> None:
        if self._loop is not None:
            self._loop.call_remaining(hook, number, error)

    def _save_before_end(self, error: BaseException, *, due: bool, batch: int | None, logs: Any) -> None:
        """Save what is finished, for an exception is about to end the fit; what fails then is a note on it."""
        try:
            if self._save_on_exception or due:
                self._save(batch=batch, logs=logs, end=True)
        except Exception as failure:
            error.add_note(f"saving before the end failed too: {failure}")
        finally:
            self.end(error)

    def _train_ends(self, others: Callable[..., None], logs: Any = None) -> None:
        resumed, self._pending = self._pending, None
        if resumed is not None and self._loop is not None:
            self._loop.restore_initial_epoch()  # not one epoch was left
            resumed.load_finished(self._saver.model, behind_last_epoch=self._loop.finalize_weights)
            resumed.put_back_callbacks(self._siblings())
            resumed.put_back_generators()
        with self._guard:
            others(logs)
        self._obey_signal()
        complete = self._is_last(self.position.epoch)
        self.end()
        self._saver.fit_ended(complete=complete)
        # One that came while the last saves were waited for.
        self._stop.deliver()

    @property
    def is_open(self) -> bool:
        """Whether the fit is running."""
        return self._writer.store is not None

    def end(self, error: BaseException | None = None) -> None:
        """Let go of the fit and of the store; may be repeated."""
        # The callback may live long: what the fit trained on, and its loader's processes, must not for that.
        loop, resumed = self._loop, self._pending
        self._loop = self._pending = self._iteration = self._frozen = self._epoch_end = None
        if loop is not None:
            if resumed is not None:
                loop.restore_initial_epoch()
            loop.release()
        self.resumed = self.resumed and self.resumed.settled()
        try:
            self._saver.saves_end(error)
        finally:
            self._stop.uninstall()
            self._stop.is_polled = None
            self._writer.close(error)
