"""Keras adapter of the store: snapshots of models, and checkpoints restored into models.

A live model is not changed before the payload has been verified and compared with it. If a layer's own code fails after
that, the model is restored. The payload is read from the disk once for that, and once more from the system's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import keras

from ckptstore.distributed.job import Job
from ckptstore.errors import InvalidArgumentError, UnserialisableModelError
from ckptstore.formats.payload import checkpoint_as_file, open_checkpoint, open_share
from ckptstore.formats.payload_format import OpenPayload
from ckptstore.formats.registry import by_file_name, by_name
from ckptstore.formats.snapshot import TrainingState
from ckptstore.keras import private
from ckptstore.keras.model import compatibility, legacy_h5, optimizer_building
from ckptstore.keras.model.assignment_tracker import AssignmentTracker
from ckptstore.keras.model.atomic_load import (
    assign,
    assign_atomically,
    live_variables,
    load_atomically,
    load_variables,
    loadable_variables,
    uses_only_keras_code,
)
from ckptstore.keras.model.building import build_as_saved
from ckptstore.keras.model.processes import job_of, refuse_forms_of_layers
from ckptstore.keras.model.shared_variables import verify_what_is_read
from ckptstore.keras.model.snapshots import (
    Snapshots,
    checked_capture,
    require_built,
    uncompiled_optimizer,
    unserialisable_named,
)
from ckptstore.keras.private.capture import Capture
from ckptstore.keras.state import assigning, training_state
from ckptstore.keras.state.objects import Objects, ObjectsPlan
from ckptstore.records import Checkpoint, Format
from ckptstore.system import messages


class KerasAdapter:
    """Implementation of `ckptstore.store.model_adapter.ModelAdapter` for Keras."""

    def __init__(self) -> None:
        # For each restored model: its variables, and those that Keras leaves out; finding these takes a full traversal.
        self._groups: WeakKeyDictionary[Any, tuple[tuple[Any, ...], training_state.UnsavedVariables]] = (
            WeakKeyDictionary()
        )

    def snapshots(self, job: Job | None = None) -> Snapshots:
        """Return a `ckptstore.keras.model.snapshots.Snapshots`; one object serves all saves of a fit.

        Args:
            job: The processes that save the model together, of which this is one; None for saves of this one alone.
        """
        return Snapshots(job)

    def check_format(self, model: Any, format: Format) -> None:
        """Check that a model can be saved in a format, as far as that is known before it is built.

        Raises:
            UnserialisableModelError: It is to be saved whole, and Keras cannot make its configuration.
        """
        if not by_name(format).is_whole_model:
            return
        try:
            with unserialisable_named(model):
                private.config_documents(model)
        except UnserialisableModelError as error:
            # Some configurations can be made only once the model is built.
            if model.built or error.is_final:
                raise

    def restore(
        self,
        model: Any,
        checkpoint: Checkpoint,
        *,
        optimizer: Any = None,
        generators: bool = False,
        check: Callable[[TrainingState | None], None] | None = None,
        objects: Objects | None = None,
        build: Callable[[], None] | None = None,
    ) -> TrainingState | None:
        """Restore weights, optimizer and training state of a model; return the training state.

        The payload is verified and then compared with the model before the model is changed. If a layer's own loading
        fails after that, the model's variables get their values back. If the loading is interrupted, the model is as it
        was, or (if no layer has loading of its own) as it was saved.

        Each process of a job calls this for itself and waits for no other. It reads the state that it saved, and of the
        variables what its devices hold; it verifies that, and an equal share of the payload, so that all processes
        together verify all of it. A payload of another number of processes is restored, too; a warning says that what
        follows is not promised to be exact.

        Args:
            model: The model, compiled as it was when it was saved. What is not built yet is built as it was.
            checkpoint: The checkpoint; its size and digest are checked.
            optimizer: The optimizer of a training loop written by hand, if one was saved.
            generators: True to restore the global random generators, too, to continue as if never interrupted; then
                `objects` must have all that the checkpoint has.
            check: Called with the training state before the model is changed; may raise to refuse it.
            objects: The objects that were saved with it, by name; trees that cannot be changed in place are replaced
                in it.
            build: Builds what cannot be built as it was; called where something is missing.

        Raises:
            SeveralProcessesError: Several processes share the model, and a layer loads in a way of its own.
            CorruptPayloadError: The payload is damaged; the model is unchanged.
            ModelMismatchError: It does not match the model; the model is unchanged.
            ObjectsMismatchError: It does not match `objects`; nothing is changed.
            RefusedByLayerError: A layer could not load it; `put_back` tells whether the model is as it was.
            ModelNotReadyError: The model is not built.
        """
        job = job_of(model)
        with _alone(job), _opened(checkpoint, job) as found:
            state = _state_of_process(found, job)
            plan = ObjectsPlan(objects, state, must_name_all=generators, of_first=found.state)
            if check is not None:
                check(state)
            self._restore(model, checkpoint, found, state, plan, optimizer=optimizer, build=build)
            another = _other_processes(found, state, job)
            if another is not None:
                messages.warn(f"version {checkpoint.version} {another}")
            if generators:
                training_state.restore_generators(state)
            return state

    def _restore(
        self,
        model: Any,
        checkpoint: Checkpoint,
        found: OpenPayload,
        state: TrainingState | None,
        objects: ObjectsPlan,
        *,
        optimizer: Any,
        build: Callable[[], None] | None,
    ) -> None:
        extra, job = uncompiled_optimizer(model, optimizer), job_of(model)
        if not found.format.matches_by_order:
            build_as_saved(model, found.layout(), found.documents(), state, build)
        require_built(model)
        saved = optimizer_building.optimizer_in(found, model, extra, state)
        optimizer_building.build_optimizers(model, extra, saved, state)
        initial = optimizer_building.initial_assignments(model, extra, saved)
        optimizers = private.optimizers_of(model, extra)
        captured = checked_capture(model, extra)
        if job is not None:
            refuse_forms_of_layers(captured.entries, job)
        groups = _unsaved(model, optimizers, captured)
        self._groups[model] = _held(model), groups
        other_replicas = training_state.other_replicas(groups, state)
        if other_replicas is not None and _other_processes(found, state, job) is None:
            messages.warn(other_replicas)
        if found.format.matches_by_order:
            loaded = legacy_h5.assignments(model, found, extra, with_optimizer=not initial)
            assignments = [*loaded, *initial, *training_state.plan_assignments(groups, optimizers, state)]
            with objects.loaded(keep_on_interrupt=False):
                assign_atomically(assignments)
        else:
            compatibility.check(captured.entries, found.layout(), with_optimizer=not initial)
            if job is not None:
                verify_what_is_read(found, captured.entries, process=job.process, processes=job.processes)
            assignments = [*initial, *training_state.plan_assignments(groups, optimizers, state)]

            plain = uses_only_keras_code(captured, model, optimizers)
            assets = found.documents()

            def load() -> None:
                load_variables(
                    model,
                    checkpoint,
                    loadable_variables(found, captured, plain),
                    assets,
                    plain=plain,
                    optimizer=extra,
                    skip=optimizer_building.all_assigned(optimizers, initial),
                )
                assign(assignments)

            with objects.loaded(keep_on_interrupt=plain):
                load_atomically(load, plain, model, optimizers)

    def restore_state(self, model: Any, state: TrainingState | None, *, metrics: bool) -> None:
        """Restore again what Keras leaves out of its files: seed generators and metrics, not the weights.

        Args:
            model: The model.
            state: The training state.
            metrics: False to leave metrics as they are, if an epoch has reset them.

        Raises:
            ModelMismatchError: It does not match the model; the model is unchanged.
        """
        optimizers = private.optimizers_of(model)
        assignments = training_state.plan_assignments(self._groups_of(model), optimizers, state)
        left = set() if metrics else {id(variable) for variable in model.metrics_variables}
        assignments = [
            assignment
            for assignment in assignments
            if id(getattr(assignment.variable, "variable", assignment.variable)) not in left
        ]
        with _alone(job_of(model)):
            assign_atomically(assignments)

    def _groups_of(self, model: Any) -> training_state.UnsavedVariables:
        """Return the variables that Keras leaves out; those found at the restore if the model still has the same."""
        held, groups = self._groups.get(model, ((), {}))
        now = _held(model)
        if len(held) == len(now) and all(before is after for before, after in zip(held, now, strict=True)):
            return groups
        return _unsaved(model, private.optimizers_of(model), checked_capture(model, None))

    def track_assignments(self, model: Any) -> AssignmentTracker:
        """Return a tracker of assignments to all variables that a resume loads."""
        return AssignmentTracker(live_variables(model, private.optimizers_of(model)))

    def load_model(self, checkpoint: Checkpoint, **kwargs: Any) -> Any:
        """Verify a checkpoint's payload, and return the whole model in it, loaded by Keras.

        Raises:
            CorruptPayloadError: The payload is damaged.
            InvalidArgumentError: It holds weights only.
        """
        if not by_name(checkpoint.format).is_whole_model:
            raise _no_whole_model(checkpoint)
        inspect_payload(checkpoint)
        with checkpoint_as_file(checkpoint) as file:
            found = by_file_name(file.name)
            if found is not None and not found.is_whole_model:  # it was saved without a configuration
                raise _no_whole_model(checkpoint)
            return keras.saving.load_model(str(file), **kwargs)

    def load_weights(self, checkpoint: Checkpoint, model: Any) -> None:
        """Verify a checkpoint's payload, and load its weights into a built model.

        Other dtypes are converted, as Keras does. If the model is compiled and the optimizer's state matches, that
        state is loaded, too; otherwise the optimizer stays unchanged.

        Raises:
            CorruptPayloadError: The payload is damaged; the model is unchanged.
            ModelMismatchError: The weights do not match; the model is unchanged.
            RefusedByLayerError: A layer could not load it; `put_back` tells whether the model is as it was.
            ModelNotReadyError: The model is not built.
        """
        job = job_of(model)
        with _alone(job), _opened(checkpoint, job) as found:
            self._load_weights(checkpoint, found, model)

    def _load_weights(self, checkpoint: Checkpoint, found: OpenPayload, model: Any) -> None:
        assets = found.documents()
        if not found.format.matches_by_order:
            build_as_saved(model, found.layout(), assets, found.state())
        require_built(model)
        if found.format.matches_by_order:
            assignments = legacy_h5.assignments(model, found, None, with_optimizer=False, any_dtype=True)
            assign_atomically(assignments)
            return
        state = found.state()
        saved = optimizer_building.optimizer_in(found, model, None, state)
        optimizer_building.build_optimizers(model, None, saved, state)
        optimizers = private.optimizers_of(model)
        captured = checked_capture(model, None)
        layout = found.layout()
        slots = training_state.how_built(state).slots
        compatibility.check_weights(captured.entries, layout, slots)
        job = job_of(model)
        if job is not None:
            refuse_forms_of_layers(captured.entries, job)
            verify_what_is_read(found, captured.entries, process=job.process, processes=job.processes)
        same_optimizer = compatibility.optimizer_matches(
            captured.entries, layout, slots
        ) and training_state.same_optimizer_kinds(optimizers, state)
        skip = [] if same_optimizer else optimizers
        plain = uses_only_keras_code(captured, model, optimizers)

        def load() -> None:
            load_variables(
                model, checkpoint, loadable_variables(found, captured, plain), assets, plain=plain, skip=skip
            )

        load_atomically(load, plain, model, optimizers)


adapter = KerasAdapter()


def _no_whole_model(checkpoint: Checkpoint) -> InvalidArgumentError:
    return InvalidArgumentError(
        argument="checkpoint",
        value=checkpoint.version,
        reason="holds weights only, not a whole model",
        hint="build the model and call Checkpoint.load_weights(model)",
    )


def _opened(checkpoint: Checkpoint, job: Job | None) -> AbstractContextManager[OpenPayload]:
    """Open a payload, of which each process of a job verifies a share."""
    return open_checkpoint(checkpoint) if job is None else open_share(checkpoint, job.process, job.processes)


def _alone(job: Job | None) -> AbstractContextManager[None]:
    """Return a context in which Keras waits for no other process of a job."""
    return nullcontext() if job is None else assigning.alone()


def _state_of_process(found: OpenPayload, job: Job | None) -> TrainingState | None:
    """Return the training state that this process saved; that of process 0 where it had not been there."""
    process = 0 if job is None else job.process
    return found.state(process if process < found.processes else 0)


def _other_processes(found: OpenPayload, state: TrainingState | None, job: Job | None) -> str | None:
    """Return a short line where another number of processes has written a payload to be resumed from."""
    here = 1 if job is None else job.processes
    # In a loop by hand for torch's DDP process 0 may save a file alone, and then the loop itself is exact or not.
    by_hand = job is not None and job.kind == "torch" and not found.format.has_shards
    if state is None or found.processes == here or by_hand:
        return None
    return (
        f"was saved by {_counted(found.processes)} and is restored by {_counted(here)}: all values are equal, but what "
        "follows is not promised to be exact, since data and random numbers are divided among processes in another way"
    )


def _counted(processes: int) -> str:
    return f"{processes} process{'' if processes == 1 else 'es'}"


def _unsaved(model: Any, optimizers: list[Any], captured: Capture) -> training_state.UnsavedVariables:
    job = job_of(model)
    replica = job is not None and not job.is_leader
    return training_state.unsaved_variables(model, optimizers, captured, replica=replica)


def _held(model: Any) -> tuple[Any, ...]:
    return (*model.variables, *model.metrics_variables)


def inspect_payload(checkpoint: Checkpoint) -> None:
    """Verify a payload, and check its structure before Keras reads it.

    The digest proves that it is the file in the manifest, not who made it.

    Raises:
        CorruptPayloadError: It is not what was saved, links to other files, or claims more than it holds.
    """
    with open_checkpoint(checkpoint) as found:
        found.layout()
        found.documents()
