"""Saves of one run: a snapshot of the model is committed at once, or handed to the background and settled later."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from signal import Signals
from typing import Any

from ckptstore.background.save_queue import Backpressure
from ckptstore.errors import StoreNotFoundError
from ckptstore.formats.registry import by_name
from ckptstore.keras.private import print_message
from ckptstore.metrics import scalars
from ckptstore.records import FINISHED, Checkpoint, Format
from ckptstore.retention import Policy
from ckptstore.storage.heartbeat import Heartbeat
from ckptstore.store.model_adapter import Snapshots, adapter_for
from ckptstore.store.store import CheckpointStore
from ckptstore.system import messages
from ckptstore.training.job.fit_job import FitJob
from ckptstore.training.job.fit_store import FitStore
from ckptstore.training.job.joined_fit_store import JoinedFitStore
from ckptstore.training.job.leading_store import LeadingStore
from ckptstore.training.saving.attempt_end import plan_stop
from ckptstore.training.saving.background_saves import BackgroundSaves, PendingSave
from ckptstore.training.saving.failures import SaveFailures
from ckptstore.training.saving.monitor import MonitoredMetric
from ckptstore.training.saving.payload_format import PayloadFormat
from ckptstore.training.saving.run_writer import RunWriter
from ckptstore.training.saving.save_point import SavePoint
from ckptstore.training.saving.schedule import SaveSchedule
from ckptstore.training.saving.unrecorded_epochs import UnrecordedEpochs


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveSettings:
    """Settings that all saves of a callback share.

    Attributes:
        format: The payload's format.
        keep: The retention policy; None keeps everything.
        verbose: 1 to print a line for each checkpoint, 0 for none.
        discard_at_end: Whether to remove the run from the store when the fit is complete.
        best_only: Whether the user wants the best alone, besides the resume point.
    """

    format: Format = "keras"
    keep: Policy | None = None
    verbose: int = 0
    discard_at_end: bool = False
    best_only: bool = False


class Saves:
    """Saves a model into one run of a store, fit after fit.

    It takes snapshots, finds out which are the best, applies retention, and reports outcomes: to the schedule, to the
    user, and in `last`.

    Args:
        path: The store's directory, absolute.
        run: The run.
        failures: Handles failed saves.
        background: Whether to save in the background.
        backpressure: See `ckptstore.background.save_queue.SaveQueue`.

    Attributes:
        background: Whether to save in the background.
        backpressure: See `ckptstore.background.save_queue.SaveQueue`.
        settings: What all saves have in common; set before a fit begins.
        monitored: The monitored metric, or None; set before a fit begins.
        unrecorded: Finished epochs whose metrics go to the manifest with the next save.
        needs_preparation: True until `prepare` is called, in a fit that saves in the background.
        last: The checkpoint that was saved last, or None.
        has_fixed_format: True if all saves have to have the format of `settings`.
        job: The processes that make each save together; None where this one saves alone. Set before a fit begins.
    """

    has_fixed_format = False

    def __init__(
        self,
        path: Path,
        run: str,
        failures: SaveFailures,
        *,
        background: bool,
        backpressure: Backpressure,
    ) -> None:
        self.background = background
        self.backpressure: Backpressure = backpressure
        self.settings = SaveSettings()
        self.monitored: MonitoredMetric | None = None
        self.last: Checkpoint | None = None
        self.unrecorded = UnrecordedEpochs()
        self._failures = failures
        self._writer = RunWriter(path, run)
        self._schedule = SaveSchedule()
        self._snapshots: Snapshots | None = None
        self._format = PayloadFormat(self.settings.format, is_fixed=self.has_fixed_format)
        self._in_background: BackgroundSaves | None = None
        self.needs_preparation = False
        self._is_checked = False
        self.job: FitJob | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running fit out: a copy begins its own."""
        return {
            **self.__dict__,
            "monitored": copy.copy(self.monitored),
            "_failures": copy.copy(self._failures),
            "_writer": copy.copy(self._writer),
            "_schedule": SaveSchedule(),
            "_snapshots": None,
            "_in_background": None,
            "job": None,
            "unrecorded": UnrecordedEpochs(),
            "needs_preparation": False,
        }

    @property
    def path(self) -> Path:
        """The store's directory, absolute."""
        return self._writer.path

    @property
    def run(self) -> str:
        """The run."""
        return self._writer.run

    @property
    def heartbeat(self) -> Heartbeat | None:
        """The run's heartbeat while the store is open, else None."""
        store = self._writer.store
        return None if store is None else store.heartbeat(self.run)

    def _waiting(self) -> AbstractContextManager[None]:
        """Return a block in which the training waits for a save."""
        heartbeat = self.heartbeat
        return nullcontext() if heartbeat is None else heartbeat.during("saving")

    def use_run(self, run: str) -> None:
        """Write another run from now on; called between fits."""
        if run != self.run:
            self._writer = RunWriter(self.path, run)

    @property
    def store(self) -> FitStore | None:
        """The store while it is open, else None."""
        return self._writer.store

    # --- a fit -------------------------------------------------------------------------------------

    def open(self, fit: object, *, ready: Callable[[], None] | None = None) -> FitStore:
        """Open the store, finish what a crash left, take the run, and begin an attempt; see `RunWriter.open`."""
        store = self._writer.open(fit, ready=ready, before=self.end, opens=self._open_store)
        store.recorder.begin(self.run, otherwise="unknown")
        store.heartbeat(self.run)
        return store

    def _open_store(self, path: Path) -> FitStore:
        if self.job is None:
            return CheckpointStore(path)
        return (LeadingStore if self.job.is_leader else JoinedFitStore)(path, self.job)

    @property
    def leads(self) -> bool:
        """True where this process is alone, or process 0 of several, which prints and decides for all."""
        return self.job is None or self.job.is_leader

    def agreed(self, value: bool) -> bool:
        """Return a decision that is the same on all processes of the fit: that of process 0.

        Each process calls this in the same order.

        Raises:
            DistributedError: It does not arrive.
        """
        return value if self.job is None else bool(self.job.agreements.decide(value))

    def begin(self, model: Any, schedule: SaveSchedule | None = None) -> None:
        """Prepare for the saves of a fit; the process that saves starts meanwhile.

        Args:
            model: The model.
            schedule: Takes note of each save and its outcome.

        Raises:
            UnserialisableModelError: The model cannot be saved in a format that is fixed.
            SeveralProcessesError: Several processes share the model, and cannot save one of its layers.
        """
        store = self._writer.store
        assert store is not None
        self._schedule = SaveSchedule() if schedule is None else schedule
        # A process may miss the end of a save that process 0 knows, and must not leave the others for that.
        self._failures.may_end = self.leads
        self._snapshots = adapter_for(model).snapshots(None if self.job is None else self.job.job)
        if self.job is None:
            self._format = PayloadFormat(self.settings.format, is_fixed=self.has_fixed_format)
        else:
            leave_out = self._snapshots.leave_out_configuration
            self._format = PayloadFormat("sharded", is_fixed=False, leave_out=leave_out)
            if not by_name(self.settings.format).is_whole_model:
                self._format.leave_out_configuration()
        self._format.check(model)
        self._snapshots.check(model)
        self._is_checked = False
        self.needs_preparation = self.background
        if self.background:
            self._in_background = BackgroundSaves(
                store.open_save_queue(self.run, backpressure=self.backpressure),
                self._failures,
                self._schedule,
                settle=self._settle,
                retain=partial(store.retain, self.run),
            )
            self._in_background.start()

    def end(self, error: BaseException | None = None) -> None:
        """Wait for saves that are not finished and end the process that saves; may be repeated.

        Args:
            error: What ends the fit; failures of saves then become notes on it.

        Raises:
            CheckpointStoreError: As `settle`; everything is released anyway.
        """
        with messages.held_back(may_raise=error is None):
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        background = self._in_background
        try:
            self.drain()
            if background is not None:
                background.close()
                background.settle_rest()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"an earlier save failed too: {failure}")
        finally:
            self._in_background = self._snapshots = None
            self.needs_preparation = False
            if background is not None:
                background.close()

    def close(self, error: BaseException | None = None, *, signal: Signals | None = None) -> None:
        """Release the run and the store; after an `error` the start counts as one without progress.

        Args:
            error: What ended the fit, or None.
            signal: The signal that has stopped it, or None.
        """
        if self.store is not None and signal is not None:
            plan_stop(self.store.recorder, self.run, signal, error)
        self._writer.close(error)

    def close_for_another(self) -> None:
        """Wait for saves that are not finished, then release the run and the store."""
        self._writer.close_for_another()

    def training_failed(self, error: BaseException) -> None:
        """Record that an exception has ended the training, though nothing is released yet."""
        if self.store is not None:
            self.store.recorder.failed(error, self.run)
            self.store.heartbeat(self.run).end()

    def fit_ended(self, *, complete: bool) -> None:
        """Discard the run if that is wanted and the fit is complete; a crash meanwhile leaves all of it, or nothing."""
        if complete and self.settings.discard_at_end:
            with suppress(StoreNotFoundError):
                CheckpointStore.discard(self.path, run=self.run)

    # --- saving ------------------------------------------------------------------------------------

    @property
    def is_saving(self) -> bool:
        """True while a save in the background is not settled."""
        return self._in_background is not None and self._in_background.is_saving

    def prepare(self, model: Any) -> None:
        """Do early what the first save would otherwise wait for."""
        self.needs_preparation = False
        if self._in_background is None or self.store is None:
            return
        prepare = partial(self.store.prepare, model, run=self.run, snapshots=self._snapshots, epoch=0)
        snapshot, _ = self._format.take(lambda format: prepare(format=format))
        if by_name(snapshot.format).streams(snapshot):
            self._in_background.prepare(snapshot)

    def save(self, model: Any, point: SavePoint, *, name: str = "") -> bool:
        """Save, or hand over to the background; returns False if the save failed or was left out.

        A crash after this returns leaves the checkpoint saved: in the background, by the process that has it.

        Args:
            model: The model; it may change as soon as this returns.
            point: The position, with its logs and state.
            name: The published path as the user spelled it.

        Raises:
            CheckpointStoreError: As `CheckpointStore.save`, unless `SaveFailures` lets training continue.
        """
        with self._waiting():
            return self._save(model, point, name)

    def _save(self, model: Any, point: SavePoint, name: str) -> bool:
        store, monitored, schedule = self.store, self.monitored, self._schedule
        assert store is not None
        metrics = self._metrics(point.logs)
        best = None if monitored is None else monitored.improvement(metrics)
        batches = schedule.save_begins()
        prepare = partial(
            store.prepare,
            model,
            run=self.run,
            snapshots=self._snapshots or adapter_for(model).snapshots(),
            epoch=point.epoch,
            batch=point.batch,
            step=point.step,
            metrics=metrics,
            keep=self.settings.keep if point.expires else None,
            monitor=None if monitored is None else monitored.with_mode,
            publish=point.publish,
            fit=point.fit,
            resumable=point.resumable,
            rollbacks=point.rollbacks,
            notes=schedule.events() | ({FINISHED: {"epoch": point.epoch}} if point.finishes else {}),
            earlier_epochs=self.unrecorded.before(point.epoch, batch=point.batch),
        )
        snapshot, request = self._format.take(lambda format: prepare(format=format))
        if self.job is not None:
            # Before the save can fail or be refused: each process counts the same saves.
            request = self.job.numbered(request)
        # Another process does not know a user's own function.
        policy = None if request.keep is None or getattr(request.keep, "is_builtin", False) else request.keep
        pending = PendingSave(
            batches=batches, best=best, policy=policy, name=name, last_epoch=point.last_finished_epoch
        )
        background = self._in_background
        if background is None or not by_name(snapshot.format).streams(snapshot):
            # What only h5py can write is not copied, and comes after the saves in the background.
            self.drain()
            saved = self._failures.attempt(lambda: store.commit(snapshot, request), retries=self.job is None)
            self._settle(pending, saved)
            if saved is None:
                schedule.not_saved()
                return False
        else:
            if policy is not None:
                request = replace(request, keep=None)
            if not background.submit(snapshot, request, pending, droppable=point.droppable):
                return False
            if monitored is not None:
                monitored.begin_save(best)
        schedule.handed_over(saving=self.is_saving)
        return True

    def epoch_ended(self, epoch: int, step: int | None, logs: Mapping[str, Any]) -> None:
        """Let the next save bring the metrics of an epoch that has ended, whether or not its end is saved."""
        metrics = self._metrics(logs)
        self.unrecorded.add(epoch, step=step, metrics=metrics)
        self._warn_if_not_monitored(epoch, metrics)

    def _warn_if_not_monitored(self, epoch: int, metrics: Mapping[str, float]) -> None:
        monitored, self._is_checked = (None if self._is_checked else self.monitored), True
        if monitored is not None and monitored.is_missed_in(metrics, required=self.settings.best_only):
            messages.warn(
                f"monitor={monitored.name!r} is not among the metrics of epoch {epoch + 1} "
                f"({', '.join(metrics)}): until it is, no checkpoint counts as the best",
                UserWarning,
            )

    def _metrics(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """Return the logs that are numbers."""
        return scalars(logs)[0]

    def is_best(self, logs: Mapping[str, Any]) -> bool:
        """Return True if the monitored metric in the logs is the best so far."""
        return self.monitored is not None and self.monitored.improvement(self._metrics(logs)) is not None

    # --- outcomes ----------------------------------------------------------------------------------

    def settle(self) -> None:
        """Report the saves that have finished in the background; waits for nothing.

        Raises:
            CheckpointStoreError: A save failed, and `SaveFailures` asks for an error.
        """
        if self._in_background is not None:
            self._in_background.settle()

    def drain(self) -> None:
        """Wait until all saves are finished, and report them; a line is printed if that takes long.

        Raises:
            CheckpointStoreError: As `settle`.
        """
        background = self._in_background
        if background is not None and background.is_saving:
            with self._waiting():
                background.wait()
            background.settle()

    def _settle(self, pending: PendingSave, saved: Checkpoint | None, start_s: float = 0.0) -> None:
        if self.monitored is not None:
            self.monitored.settle(pending.best, saved=saved is not None)
        self._schedule.settled(saved, pending.batches, saving=self.is_saving, start_s=start_s)
        if saved is None:
            return
        self.unrecorded.recorded(pending.last_epoch)
        self.last = saved
        if self.settings.verbose > 0 and self.leads:
            self._print_saved(saved, pending.best, pending.name)

    def _print_saved(self, saved: Checkpoint, best: float | None, name: str) -> None:
        metric = "" if self.monitored is None else self.monitored.name
        suffix = "" if best is None else f", the best {metric} so far: {best:.5f}"
        batch = "" if saved.batch is None else f", batch {saved.batch + 1}"
        print_message(f"\nEpoch {saved.epoch + 1}{batch}: saved as version {saved.version}{suffix}")

    # --- losses that went bad ------------------------------------------------------------------------

    def roll_back(
        self, load: Callable[[Checkpoint], bool] | None, *, sound_step: int, detail: Mapping[str, Any]
    ) -> Checkpoint | None:
        """Wait for the saves so far, and go back to the newest sound one; as `CheckpointStore.roll_back`."""
        assert self.store is not None
        self.drain()
        return self.store.roll_back(self.run, load, sound_step=sound_step, detail=detail)

    def record_bad_loss(self, detail: Mapping[str, Any]) -> None:
        """Record a loss that went bad, where the training continues with it."""
        assert self.store is not None
        self.store.record_bad_loss(self.run, detail)

    # --- a fit that is resumed -----------------------------------------------------------------------

    def state(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the training state of the saves themselves, if `logs` were saved now."""
        return {} if self.monitored is None else self.monitored.state(logs)

    def set_state(self, saved: Mapping[str, Any]) -> str | None:
        """Continue with what `state` returned; returns what to tell the user where that was of another metric."""
        if self.monitored is None or self.store is None:
            return None
        return self.monitored.set_state(saved, self.store, self.run)
