"""The Keras adapter: takes models apart for the store, and puts checkpoints back into models.

Nothing of a live model is changed before the payload has been verified and compared with the model; what a layer's own
code spoils after that is put back. The payload is read once for that, and once more from the system's memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import h5py
import keras
import ml_dtypes

from ckptstore.errors import (
    InvalidArgumentError,
    ModelNotReadyError,
    RefusedByLayerError,
)
from ckptstore.formats import payload
from ckptstore.formats.payload import OpenPayload
from ckptstore.formats.snapshot import TrainingState
from ckptstore.keras import private
from ckptstore.keras.model import compatibility, legacy_h5
from ckptstore.keras.model.assignment_tracker import AssignmentTracker
from ckptstore.keras.model.snapshots import (
    BUILD,
    Snapshots,
    built_optimizers,
    checked_capture,
    require_built,
    uncompiled_optimizer,
)
from ckptstore.keras.model.torch_tensors import TensorViews
from ckptstore.keras.private.capture import Capture
from ckptstore.keras.state import optimizers as keras_optimizers
from ckptstore.keras.state import training_state
from ckptstore.keras.state.arrays import stable_value
from ckptstore.records import Checkpoint
from ckptstore.system.arrays import Array


class KerasAdapter:
    """What the store asks of Keras; see `ckptstore.store.model_adapter.ModelAdapter`."""

    def __init__(self) -> None:
        # Of each model that was restored: its variables, and those that Keras leaves out; to find these takes a walk.
        self._groups: WeakKeyDictionary[Any, tuple[tuple[Any, ...], training_state.UnsavedVariables]] = (
            WeakKeyDictionary()
        )

    def snapshots(self) -> Snapshots:
        """Return what takes models apart, see `ckptstore.keras.model.snapshots`; one for all saves of a fit."""
        return Snapshots()

    def restore(
        self,
        model: Any,
        checkpoint: Checkpoint,
        *,
        optimizer: Any = None,
        generators: bool = False,
        check: Callable[[TrainingState | None], None] | None = None,
    ) -> TrainingState | None:
        """Bring weights, optimizer and training state back into a model; returns the training state.

        The payload is verified, then compared with the model, all before the model is touched; should a
        layer's own loading fail after that, the model's variables are put back as they were. Interrupted after
        that, the model is as it was, or (where no layer has loading of its own) as it was saved.

        Args:
            model: The model, built and compiled as it was when it was saved. One that is not built yet is
                built as it was, where the checkpoint is a whole model.
            checkpoint: Where its payload lies, and what it must be.
            optimizer: The optimizer of a training loop written by hand, if one was saved.
            generators: True to set the global random generators back too, to go on as if never interrupted.
            check: Called with the training state before anything of the model is touched, to refuse it.

        Raises:
            CorruptPayloadError: The payload is damaged; the model is unchanged.
            ModelMismatchError: It does not fit; the model is unchanged.
            RefusedByLayerError: A layer could not load it; `put_back` tells whether the model is as it was.
            ModelNotReadyError: The model is not built.
        """
        with open_checkpoint(checkpoint) as found:
            return self._restore(model, checkpoint, found, optimizer, generators=generators, check=check)

    def _restore(
        self,
        model: Any,
        checkpoint: Checkpoint,
        found: OpenPayload,
        optimizer: Any,
        *,
        generators: bool,
        check: Callable[[TrainingState | None], None] | None,
    ) -> TrainingState | None:
        if checkpoint.format == "keras" and not model.built:
            _build_as_saved(model, found.documents())
        require_built(model, f"{BUILD}; or take a new one from Checkpoint.load_model()")
        extra = uncompiled_optimizer(model, optimizer)
        state = found.state()
        if check is not None:
            check(state)
        keras_optimizers.build_optimizers(model, training_state.fit_values(state))
        optimizers = built_optimizers(model, extra)
        captured = checked_capture(model, extra)
        groups = training_state.unsaved_variables(model, captured)
        self._groups[model] = _held(model), groups
        if checkpoint.format == "h5":
            loaded = _legacy_assignments(model, checkpoint, extra)
            assignments = [*loaded, *training_state.plan_assignments(groups, optimizers, state)]
            with _put_back_on_error(one.variable for one in assignments):
                _assign(assignments)
        else:
            compatibility.check(captured.entries, found.layout())
            assignments = training_state.plan_assignments(groups, optimizers, state)

            plain = _is_plain(captured, model, optimizers)
            assets = found.documents()

            def load() -> None:
                _load(
                    model,
                    checkpoint,
                    _variables(found, captured, plain),
                    assets,
                    plain=plain,
                    optimizer=extra,
                )
                _assign(assignments)

            _load_whole(load, plain, model, optimizers)
        if generators:
            training_state.restore_generators(state)
        return state

    def restore_state(self, model: Any, state: TrainingState | None, *, metrics: bool) -> None:
        """Bring back, once more, what Keras leaves out of its files: seed generators, metrics; not the weights.

        Args:
            model: The model.
            state: The training state.
            metrics: False to leave metrics as they are, where an epoch has reset them.

        Raises:
            ModelMismatchError: It does not fit; the model is unchanged.
        """
        optimizers = built_optimizers(model, None)
        assignments = training_state.plan_assignments(self._groups_of(model), optimizers, state)
        left = set() if metrics else {id(one) for one in model.metrics_variables}
        assignments = [one for one in assignments if id(one.variable) not in left]
        with _put_back_on_error(one.variable for one in assignments):
            _assign(assignments)

    def _groups_of(self, model: Any) -> training_state.UnsavedVariables:
        """Return the variables that Keras leaves out: as they were found at the restore, if all are still the same."""
        held, groups = self._groups.get(model, ((), {}))
        now = _held(model)
        if len(held) == len(now) and all(one is other for one, other in zip(held, now, strict=True)):
            return groups
        return training_state.unsaved_variables(model, checked_capture(model, None))

    def track_assignments(self, model: Any) -> AssignmentTracker:
        """Return marks of all that a resume loads, to find out whether it was assigned to since."""
        return AssignmentTracker(_live_variables(model, built_optimizers(model, None)))

    def load_model(self, checkpoint: Checkpoint, **kwargs: Any) -> Any:
        """Verify a checkpoint's payload and return the whole model in it, as Keras loads it.

        Raises:
            CorruptPayloadError: The payload is damaged.
            InvalidArgumentError: It holds weights only.
        """
        if checkpoint.format == "weights":
            raise InvalidArgumentError(
                argument="checkpoint",
                value=checkpoint.version,
                reason="holds weights only, not a whole model",
                hint="build the model and call Checkpoint.load_weights(model)",
            )
        inspect_payload(checkpoint)
        return keras.saving.load_model(str(checkpoint.path), **kwargs)

    def load_weights(self, checkpoint: Checkpoint, model: Any) -> None:
        """Verify a checkpoint's payload and load its weights into a built model.

        Other dtypes are converted, as Keras does. If the model is compiled and the optimizer's state fits,
        that is loaded too; where it does not, the optimizer stays as it is.

        Raises:
            CorruptPayloadError: The payload is damaged; the model is unchanged.
            ModelMismatchError: The weights do not fit; the model is unchanged.
            RefusedByLayerError: A layer could not load it; `put_back` tells whether the model is as it was.
            ModelNotReadyError: The model is not built.
        """
        with open_checkpoint(checkpoint) as found:
            self._load_weights(checkpoint, found, model)

    def _load_weights(self, checkpoint: Checkpoint, found: OpenPayload, model: Any) -> None:
        assets = found.documents()
        require_built(model, BUILD)
        if checkpoint.format == "h5":
            assignments = _legacy_assignments(model, checkpoint, None, weights_only=True)
            with _put_back_on_error(one.variable for one in assignments):
                _assign(assignments)
            return
        optimizers = built_optimizers(model, None)
        captured = checked_capture(model, None)
        layout = found.layout()
        compatibility.check_weights(captured.entries, layout)
        fits = compatibility.optimizer_matches(
            captured.entries, layout
        ) and training_state.same_optimizer_kinds(optimizers, found.state())
        skip = [] if fits else optimizers
        plain = _is_plain(captured, model, optimizers)

        def load() -> None:
            _load(model, checkpoint, _variables(found, captured, plain), assets, plain=plain, skip=skip)

        _load_whole(load, plain, model, optimizers)


adapter = KerasAdapter()


def _held(model: Any) -> tuple[Any, ...]:
    return (*model.variables, *model.metrics_variables)


# --- putting together --------------------------------------------------------------------------


def _build_as_saved(model: Any, documents: Mapping[str, bytes]) -> None:
    config = json.loads(documents["config.json"])
    how = config.get("build_config")
    if not how:
        return
    try:
        model.build_from_config(how)
        # A subclass's layers are built by then, though it does not say so; Keras' loading does the same.
        model.built = True
    except Exception as error:
        # Whatever a model's own build raises, it means that it cannot be built from here.
        raise ModelNotReadyError(model=model.name, missing="built", hint=f"{BUILD}: {error}") from error


def _load(
    model: Any,
    checkpoint: Checkpoint,
    variables: Mapping[str, Any],
    assets: Mapping[str, bytes],
    *,
    plain: bool,
    optimizer: Any = None,
    skip: Iterable[Any] = (),
) -> None:
    try:
        private.load_variables(
            model, checkpoint.path, variables, optimizer=optimizer, assets=assets, skip=skip
        )
    except ValueError as error:
        raise RefusedByLayerError(reason=str(error), put_back=not plain) from error


def _variables(found: OpenPayload, captured: Capture, plain: bool) -> Mapping[str, Any]:
    # Elsewhere a variable may go on with the memory of the array that it is given: that has to be its own.
    is_torch = keras.backend.backend() == "torch"
    if plain and is_torch and private.copies_on_assign(entry.value for entry in captured.entries):
        return TensorViews(found.variables(found.layout()))
    return found.variables()


def _is_plain(captured: Capture, model: Any, optimizers: Iterable[Any]) -> bool:
    """Whether loading is Keras assigning to variables, one by one, what was compared with them before."""
    whole = captured.exact and all(entry.is_variable for entry in captured.entries)
    return whole and not private.has_custom_loading(model, *optimizers)


def _load_whole(load: Callable[[], None], plain: bool, model: Any, optimizers: Iterable[Any]) -> None:
    """Load all or nothing.

    Where only Keras' own code runs, all that could be refused was compared before, and nothing is kept of what the
    model held: on JAX, what is freed on the way takes in what comes. An interrupt then leaves the model as it was
    saved, not as it was; and what fails once, for want of memory or by the disk, is tried once more.
    """
    if not plain:
        with _put_back_on_error(_live_variables(model, optimizers)):
            load()
        return
    try:
        load()
    except BaseException as error:
        another = _failure_of(load)
        if another is not None:
            error.add_note(f"the model is changed in part: {type(another).__name__}: {another}")
        elif isinstance(error, Exception):
            return
        raise


def _failure_of(load: Callable[[], None]) -> BaseException | None:
    try:
        load()
    except BaseException as error:
        return error
    return None


def _legacy_value(value: Array) -> Array:
    """Return an array as it was: the older format keeps bfloat16, and nothing else, as nameless bytes."""
    return value.view(ml_dtypes.bfloat16) if value.dtype.kind == "V" and value.dtype.itemsize == 2 else value


def _assign(assignments: Iterable[training_state.Assignment]) -> None:
    for one in assignments:
        one.variable.assign(one.value)


def _live_variables(model: Any, optimizers: Iterable[Any]) -> Iterator[Any]:
    yield from model.variables
    yield from model.metrics_variables
    for optimizer in optimizers:
        yield from optimizer.variables


@contextmanager
def _put_back_on_error(variables: Iterable[Any]) -> Iterator[None]:
    """Put variables back if the block fails; holds what they held, on JAX by reference, elsewhere as a host copy."""
    before: Mapping[int, tuple[Any, Any]] = {id(one): (one, stable_value(one)) for one in variables}
    try:
        yield
    except BaseException:
        for variable, value in before.values():
            variable.assign(value)
        raise


def _legacy_assignments(
    model: Any, checkpoint: Checkpoint, optimizer: Any, *, weights_only: bool = False
) -> list[training_state.Assignment]:
    """Match the older format's arrays with the model's variables by their order."""
    trained_by = None if weights_only else optimizer or getattr(model, "optimizer", None)
    live = list(legacy_h5.variables(model, trained_by))
    with h5py.File(checkpoint.path, "r") as file:
        saved = [
            (path, _legacy_value(dataset[()]))
            for path, dataset in legacy_h5.arrays(file)
            if not (weights_only and path.startswith(legacy_h5.OPTIMIZER))
        ]
    return compatibility.match_in_order(live, saved, any_dtype=weights_only)


@contextmanager
def open_checkpoint(checkpoint: Checkpoint) -> Iterator[OpenPayload]:
    """Open a checkpoint's payload, once it is known to be the file that was saved.

    All its bytes are read for that, once; what is read of them later comes from the system's memory, as far as that
    has room for them.

    Raises:
        CorruptPayloadError: It is missing, or differs in size or digest.
    """
    with payload.open_verified(checkpoint.path, nbytes=checkpoint.nbytes, digest=checkpoint.digest) as found:
        yield found


def inspect_payload(checkpoint: Checkpoint) -> None:
    """Verify a payload, and read its structure before Keras does.

    A digest says that it is what a manifest lists, not who made it.

    Raises:
        CorruptPayloadError: It is not what was saved, links out of itself, or claims more than it holds.
    """
    with open_checkpoint(checkpoint) as found:
        found.layout()
        found.documents()
