"""A resumed run: a checkpoint that was loaded, and its training state, which is restored in two steps.

Weights and optimizer are loaded when training begins. The rest waits until every callback has had its
``on_train_begin``, since many reset themselves there, and so does a second look at what was loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

from ckptstore.errors import CheckpointNotFoundError, InvalidArgumentError, RunMismatchError
from ckptstore.formats.snapshot import TrainingState
from ckptstore.keras.model.adapter import adapter
from ckptstore.keras.model.assignment_tracker import AssignmentTracker
from ckptstore.keras.private import FitLoop, print_message
from ckptstore.keras.state import callbacks as callback_state
from ckptstore.keras.state import optimizers, random_state, training_state
from ckptstore.keras.state.arrays import first_not_finite
from ckptstore.keras.state.random_state import GlobalGenerators
from ckptstore.keras.state.user_state import UserState, UserStateReport
from ckptstore.records import Checkpoint
from ckptstore.training.data import loader_position
from ckptstore.training.data.replay_target import ReplayResult, ReplayTarget
from ckptstore.training.fingerprint import finished
from ckptstore.training.job.fit_store import FitStore
from ckptstore.training.session.fit_start import FitStart


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumedRun:
    """A checkpoint that was loaded into a model, and the state of its fit that is still to be restored.

    Attributes:
        checkpoint: The checkpoint.
        state: Its training state.
        values: State of the fit that saved it; empty if it was saved otherwise.
        drift: Differences in settings and versions since the save.
        rates_in_use: The learning rates that the script set when the run began, and that the run has kept.
        tracker: The variables as they were loaded.
        not_finite: A weight that is not finite, or None.
    """

    checkpoint: Checkpoint
    state: TrainingState | None
    values: dict[str, Any]
    drift: tuple[str, ...]
    rates_in_use: Sequence[float | None]
    tracker: AssignmentTracker
    not_finite: str | None = None

    def without_arrays(self) -> Self:
        """Return a copy without arrays, which may be large, for use after the restore."""
        values = {"stopped": self.values.get("stopped", False)}
        return replace(self, state=None, values=values, tracker=AssignmentTracker(()))

    @property
    def next_epoch(self) -> int:
        """The epoch to resume with."""
        return self.checkpoint.epoch + (self.checkpoint.batch is None)

    @property
    def batches(self) -> int:
        """Batches of that epoch that are already trained."""
        return 0 if self.checkpoint.batch is None else self.checkpoint.batch + 1

    @property
    def generators(self) -> GlobalGenerators | None:
        """The global random generators at the save."""
        return (
            None
            if self.state is None
            else random_state.from_training_state(self.state.document, self.state.arrays)
        )

    def unsaved_draws(self) -> list[str]:
        """Return why the random operations in compiled steps of TensorFlow are not exact, if they are not."""
        saved = self.generators
        names = [] if saved is None else saved.document.get(random_state.STEPS, [])
        if not names:
            return []
        return [
            f"a compiled step draws random numbers by operations whose state TensorFlow keeps to itself: "
            f"{', '.join(names)}; draw with keras.random and a keras.random.SeedGenerator"
        ]

    @property
    def position(self) -> dict[str, Any]:
        """The position in the data at the save."""
        position: dict[str, Any] = loader_position.UNKNOWN | self.values.get("data", {})
        return position

    def target(self, on_finished: Callable[[ReplayResult], None]) -> ReplayTarget:
        """Return the position in the data to go to; `on_finished` is called there."""
        return ReplayTarget(
            position=self.position,
            epoch=self.next_epoch,
            batches=self.batches,
            generators=self.generators,
            logs=self.values.get("logs", {}),
            on_finished=on_finished,
        )

    def is_finished(self, epochs: int, callbacks: Sequence[Any]) -> bool:
        """Return True if nothing is left to train: the last epoch is done, or training was stopped early."""
        if self.next_epoch >= epochs:
            return True
        stopped = self.batches == 0 and bool(self.values.get("stopped"))
        return stopped and not callback_state.would_continue(
            callbacks,
            self.values.get("callbacks", {}),
            more_epochs=epochs > self.values.get("epochs", epochs),
        )

    def begins_new_fit(self, initial_epoch: int) -> bool:
        """Return True if a finished run is continued by a fit that itself says where, by its ``initial_epoch``.

        Then History, other callbacks, generators and data begin as they do without us.
        """
        checkpoint = self.checkpoint
        return initial_epoch == self.next_epoch and finished.is_finished(
            self.values, epoch=checkpoint.epoch, in_epoch=checkpoint.batch is not None
        )

    def refuse_other_epoch(self, epoch: int) -> None:
        """Refuse to begin with an epoch that the caller chose, and that the run has finished or not reached.

        Raises:
            InvalidArgumentError: It is not the epoch that the run resumes with.
        """
        if epoch != self.next_epoch:
            reason = f"the run resumes with epoch {self.next_epoch}; leave it out"
            raise InvalidArgumentError(argument="initial_epoch", value=epoch, reason=reason)

    def restore_model(self, model: Any) -> None:
        """Undo what other callbacks did to the model since it was loaded; restore what Keras does not save."""
        if self.tracker.revert():
            adapter.restore(model, self.checkpoint)
        if not self.batches:
            model.reset_metrics()
        adapter.restore_state(model, self.state, metrics=bool(self.batches))

    def load_finished(self, model: Any, *, behind_last_epoch: Callable[[], None]) -> None:
        """Undo what other callbacks did to the model since it was loaded, where nothing is left to train.

        Args:
            model: The model.
            behind_last_epoch: Repeats what Keras did to the weights after the last epoch, since that is undone too.
        """
        if self.tracker.revert():
            adapter.restore(model, self.checkpoint)
        adapter.restore_state(model, self.state, metrics=True)
        behind_last_epoch()

    def restore_callbacks(
        self, callbacks: Sequence[Any], *, ended: bool = False
    ) -> tuple[list[str], list[str]]:
        """Give the other callbacks their state.

        Args:
            callbacks: The other callbacks.
            ended: True if nothing is left to train.

        Returns:
            The keys of those whose state is not known; and of these, the ones that the saved fit did not have.
        """
        saved = self.values.get("callbacks")
        left = callback_state.set_states(callbacks, saved or {}, ended=ended)
        known = callback_state.get_states(callbacks) if left else {}
        return left, [key for key in left if saved is not None and key in known and key not in saved]

    def restore_user_state(self, live: UserState | None) -> UserStateReport:
        """Restore what the user's code keeps outside of Keras' variables."""
        return UserStateReport() if live is None else live.restore(self.values.get("user", {}))

    def restore_generators(self) -> None:
        """Set the global random generators to where they were at the save."""
        training_state.restore_generators(self.state)


def load_resume_point(
    store: FitStore,
    run: str,
    model: Any,
    live_fingerprint: dict[str, Any],
    start: FitStart,
    *,
    loop: FitLoop | None,
) -> ResumedRun | None:
    """Load the newest resume point of a run that can be loaded, or return None where it has none.

    Args:
        store: The store.
        run: The run.
        model: The model, which is not changed before the resume point is known to fit.
        live_fingerprint: The fingerprint of the fit that begins.
        start: What a run means to it that another fit has finished.
        loop: The fit, which builds what the model has not built yet; None in a loop that is not Keras' own.

    Raises:
        CheckpointNotFoundError: There is none, and there must be one.
        ModelMismatchError: It was saved of another architecture; the model is unchanged.
        RunMismatchError: The run was finished by another fit, and is not to start over; the model is unchanged.
        CheckpointStoreError: As `CheckpointStore.resume`.
    """
    found: dict[str, Any] = {}

    def check(checkpoint: Checkpoint, state: TrainingState | None) -> None:
        found["values"] = training_state.fit_values(state)
        saved = found["values"].get("fingerprint")
        begun = None if saved is None else json.loads(saved)
        epochs = None if loop is None else loop.epochs
        found["drift"] = start.check(checkpoint, found["values"], begun, live_fingerprint, epochs=epochs)
        found["rates"] = optimizers.rates_in_use(begun or {})
        found["drift"] += optimizers.changed_learning_rates(
            found["rates"],
            live_fingerprint[optimizers.RATES],
            found["values"].get(optimizers.RATES, []),
        )

    def load(checkpoint: Checkpoint) -> None:
        fits, build = partial(check, checkpoint), None if loop is None else loop.build_by_step
        found["state"] = adapter.restore(model, checkpoint, check=fits, build=build)

    checkpoint = _newest(store, run, load, start)
    if checkpoint is None:
        return None
    return ResumedRun(
        checkpoint=checkpoint,
        state=found["state"],
        values=found["values"],
        drift=tuple(found["drift"]),
        rates_in_use=found["rates"],
        tracker=adapter.track_assignments(model),
        not_finite=first_not_finite(model.trainable_variables),
    )


def _newest(
    store: FitStore, run: str, load: Callable[[Checkpoint], None], start: FitStart
) -> Checkpoint | None:
    """Load the newest resume point, or start the run over if another fit has finished it and that is wanted."""
    try:
        found = store.load_newest_resume_point(load, run)
    except RunMismatchError as error:
        if start.after_another == "refuse":
            raise
        print_message(
            f"ckptstore: run {run} was finished by another fit ({error.where} was {error.in_run} and is "
            f"{error.in_fit}), and starts over"
        )
        store.begin(run)
        return None
    if found is None and start.resume == "must":
        raise CheckpointNotFoundError(ref="resume-point", store=store.path)
    return found
