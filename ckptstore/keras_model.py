"""The Keras adapter: takes models apart for the store, and puts checkpoints back into models.

Nothing of a live model is changed before the payload has been verified and compared with the model; and what
a layer's own code spoils after that is put back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import h5py
import keras
import ml_dtypes

from ckptstore import keras_fit, keras_legacy, keras_private, training_state
from ckptstore.errors import (
    InvalidArgumentError,
    ModelNotReadyError,
    RefusedByLayerError,
)
from ckptstore.formats import payload
from ckptstore.formats.snapshot import Array, TrainingState
from ckptstore.keras_arrays import kept_value
from ckptstore.keras_marks import Marks
from ckptstore.keras_payload import look_through, verify
from ckptstore.keras_snapshots import (
    BUILD,
    Snapshots,
    built_optimizers,
    captured_model,
    require_built,
    uncompiled_optimizer,
)
from ckptstore.records import Checkpoint


class KerasAdapter:
    """What the store asks of Keras; see `ckptstore.adapters.ModelAdapter`."""

    def snapshots(self) -> Snapshots:
        """Return what takes models apart, see `ckptstore.keras_snapshots`; one for all saves of a fit."""
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
        layer's own loading fail after that, the model's variables are put back as they were.

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
            ModelNotReadyError: The model is not built.
        """
        verify(checkpoint)
        if checkpoint.format == "keras" and not model.built:
            _build_as_saved(model, checkpoint)
        require_built(model, f"{BUILD}; or take a new one from Checkpoint.load_model()")
        extra = uncompiled_optimizer(model, optimizer)
        optimizers = built_optimizers(model, extra)
        state = payload.read_state(checkpoint.path)
        if check is not None:
            check(state)
        captured = captured_model(model, extra)
        if checkpoint.format == "h5":
            loaded = _legacy_assignments(model, checkpoint, extra)
            assignments = [*loaded, *training_state.plan(model, captured, optimizers, state)]
            with _put_back_on_error(one.variable for one in assignments):
                _assign(assignments)
        else:
            keras_fit.check(captured.entries, payload.read_layout(checkpoint.path))
            assignments = training_state.plan(model, captured, optimizers, state)
            with _put_back_on_error(_live_variables(model, optimizers)):
                _load(model, checkpoint, optimizer=extra)
                _assign(assignments)
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
        assignments = training_state.plan(model, captured_model(model, None), optimizers, state)
        left = set() if metrics else {id(one) for one in model.metrics_variables}
        assignments = [one for one in assignments if id(one.variable) not in left]
        with _put_back_on_error(one.variable for one in assignments):
            _assign(assignments)

    def marks(self, model: Any) -> Marks:
        """Return marks of all that a resume loads, to find out whether it was assigned to since."""
        return Marks(_live_variables(model, built_optimizers(model, None)))

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
        verify(checkpoint)
        look_through(checkpoint)
        return keras.saving.load_model(str(checkpoint.path), **kwargs)

    def load_weights(self, checkpoint: Checkpoint, model: Any) -> None:
        """Verify a checkpoint's payload and load its weights into a built model.

        Other dtypes are converted, as Keras does. If the model is compiled and the optimizer's state fits,
        that is loaded too; where it does not, the optimizer stays as it is.

        Raises:
            CorruptPayloadError: The payload is damaged; the model is unchanged.
            ModelMismatchError: The weights do not fit; the model is unchanged.
            ModelNotReadyError: The model is not built.
        """
        verify(checkpoint)
        look_through(checkpoint)
        require_built(model, BUILD)
        if checkpoint.format == "h5":
            assignments = _legacy_assignments(model, checkpoint, None, weights_only=True)
            with _put_back_on_error(one.variable for one in assignments):
                _assign(assignments)
            return
        optimizers = built_optimizers(model, None)
        captured = captured_model(model, None)
        layout = payload.read_layout(checkpoint.path)
        keras_fit.check_weights(captured.entries, layout)
        fits = keras_fit.optimizer_fits(captured.entries, layout) and training_state.same_kinds(
            optimizers, payload.read_state(checkpoint.path)
        )
        skip = [] if fits else optimizers
        with _put_back_on_error(_live_variables(model, optimizers)):
            _load(model, checkpoint, skip=skip)


adapter = KerasAdapter()


# --- putting together --------------------------------------------------------------------------


def _build_as_saved(model: Any, checkpoint: Checkpoint) -> None:
    config = json.loads(payload.read_documents(checkpoint.path)["config.json"])
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


def _load(model: Any, checkpoint: Checkpoint, *, optimizer: Any = None, skip: Iterable[Any] = ()) -> None:
    assets = payload.read_documents(checkpoint.path) if checkpoint.format == "keras" else {}
    try:
        keras_private.load(model, checkpoint.path, optimizer=optimizer, assets=assets, skip=skip)
    except ValueError as error:
        raise RefusedByLayerError(reason=str(error)) from error


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
    """Put variables back if the block fails; costs references on JAX, elsewhere a copy in host memory."""
    before: Mapping[int, tuple[Any, Any]] = {id(one): (one, kept_value(one)) for one in variables}
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
    live = list(keras_legacy.variables(model, trained_by))
    with h5py.File(checkpoint.path, "r") as file:
        saved = [
            (path, _legacy_value(dataset[()]))
            for path, dataset in keras_legacy.arrays(file)
            if not (weights_only and path.startswith(keras_legacy.OPTIMIZER))
        ]
    return keras_fit.match_in_order(live, saved, any_dtype=weights_only)
