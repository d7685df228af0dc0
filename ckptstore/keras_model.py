"""The Keras adapter: takes models apart for the store, and puts checkpoints back into models.

Nothing of a live model is changed before the payload has been verified and compared with the model; and what
a layer's own code spoils after that is put back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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
from ckptstore.formats.snapshot import Array, FitState, Snapshot, TrainingState, Variable
from ckptstore.keras_arrays import host_array, kept_value, shape_and_dtype
from ckptstore.keras_capture import Capture, Entry
from ckptstore.keras_marks import Marks
from ckptstore.keras_payload import look_through, verify
from ckptstore.records import Checkpoint, Format

_BUILD = "call it once on data, or model.build(input_shape)"
_COMPILE = "model.compile(...); or pass optimizer= (a loop written by hand), or weights_only=True"
_SERIALISE = (
    "Keras asks for a get_config() that returns plain values; or save the weights alone "
    "(format='weights', save_weights_only=True)"
)


class KerasAdapter:
    """What the store asks of Keras; see `ckptstore.adapters.ModelAdapter`."""

    def snapshot(
        self,
        model: Any,
        *,
        format: Format,
        optimizer: Any = None,
        weights_only: bool = False,
        fit: FitState | None = None,
        resumable: bool = True,
    ) -> Snapshot:
        """Take a model apart; nothing is written, and its variables are read when the payload is.

        Args:
            model: A built Keras model.
            format: ``"keras"``, ``"weights"`` or ``"h5"``.
            optimizer: The optimizer of a training loop written by hand, for a model that is not compiled.
            weights_only: True to leave out optimizer and training state.
            fit: What joins the training state: where the running fit stands.
            resumable: False to leave out the training state alone.

        Raises:
            ModelNotReadyError: It is not built; not compiled, with neither `optimizer` nor `weights_only`; or
                it is to be saved whole and cannot tell its configuration.
            InvalidArgumentError: `optimizer` is given for a model that was compiled with another one.
        """
        _require_built(model, _BUILD)
        if weights_only:
            return _weights_snapshot(model, format)
        extra = _uncompiled_optimizer(model, optimizer)
        if extra is None and not model.compiled:
            raise ModelNotReadyError(model=model.name, missing="compiled", hint=_COMPILE)
        optimizers = _built_optimizers(model, extra)
        captured = _captured(model, extra, documents=format == "keras")
        state = training_state.collect(model, captured, optimizers, fit) if resumable else None
        if format == "h5":
            return Snapshot(format=format, state=state, fill=partial(_fill_legacy, model, extra))
        return Snapshot(
            format=format,
            variables=_variables(captured.entries),
            attributes=captured.attributes,
            documents=captured.documents,
            state=state,
        )

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
        _require_built(model, f"{_BUILD}; or take a new one from Checkpoint.load_model()")
        extra = _uncompiled_optimizer(model, optimizer)
        optimizers = _built_optimizers(model, extra)
        state = payload.read_state(checkpoint.path)
        if check is not None:
            check(state)
        captured = _captured(model, extra)
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
        optimizers = _built_optimizers(model, None)
        assignments = training_state.plan(model, _captured(model, None), optimizers, state)
        left = set() if metrics else {id(one) for one in model.metrics_variables}
        assignments = [one for one in assignments if id(one.variable) not in left]
        with _put_back_on_error(one.variable for one in assignments):
            _assign(assignments)

    def marks(self, model: Any) -> Marks:
        """Return marks of all that a resume loads, to find out whether it was assigned to since."""
        return Marks(_live_variables(model, _built_optimizers(model, None)))

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
        _require_built(model, _BUILD)
        if checkpoint.format == "h5":
            assignments = _legacy_assignments(model, checkpoint, None, weights_only=True)
            with _put_back_on_error(one.variable for one in assignments):
                _assign(assignments)
            return
        optimizers = _built_optimizers(model, None)
        captured = _captured(model, None)
        layout = payload.read_layout(checkpoint.path)
        keras_fit.check_weights(captured.entries, layout)
        fits = keras_fit.optimizer_fits(captured.entries, layout) and training_state.same_kinds(
            optimizers, payload.read_state(checkpoint.path)
        )
        skip = [] if fits else optimizers
        with _put_back_on_error(_live_variables(model, optimizers)):
            _load(model, checkpoint, skip=skip)


adapter = KerasAdapter()


# --- taking apart ------------------------------------------------------------------------------


def _require_built(model: Any, hint: str) -> None:
    if not model.built:
        raise ModelNotReadyError(model=model.name, missing="built", hint=hint)


def _uncompiled_optimizer(model: Any, optimizer: Any) -> Any:
    """Return `optimizer` if the model does not know it, None if it does or there is none."""
    if optimizer is None or any(optimizer is known for known in keras_private.optimizers_of(model)):
        return None
    if model.compiled:
        raise InvalidArgumentError(
            argument="optimizer",
            value=type(optimizer).__name__,
            reason="the model is compiled with another optimizer",
            hint="leave optimizer= out, or do not compile the model",
        )
    return optimizer


def _built_optimizers(model: Any, extra: Any) -> list[Any]:
    """Return the model's optimizers, after building those that have seen no training step yet.

    Only those that train this model's variables can be built here: the compiled one and the one given.
    """
    for optimizer in (getattr(model, "optimizer", None), extra):
        if isinstance(optimizer, keras.optimizers.Optimizer) and not optimizer.built:
            optimizer.build(model.trainable_variables)
    return keras_private.optimizers_of(model, extra)


def _captured(model: Any, optimizer: Any, *, documents: bool = False) -> Capture:
    try:
        return keras_private.capture(model, optimizer=optimizer, documents=documents)
    except NotImplementedError as error:
        raise ModelNotReadyError(
            model=model.name, missing="serialisable as a whole", hint=_SERIALISE
        ) from error


def _weights_snapshot(model: Any, format: Format) -> Snapshot:
    if format == "h5":
        raise InvalidArgumentError(
            argument="weights_only",
            value=True,
            reason="the older .h5 format holds whole models",
            hint="format='weights'",
        )
    captured = _captured(model, None, documents=format == "keras")
    return Snapshot(
        format=format,
        variables=_variables(entry for entry in captured.entries if entry.owner == "model"),
        attributes={
            group: values
            for group, values in captured.attributes.items()
            if not group.startswith("optimizer/")
        },
        documents=captured.documents,
    )


def _variables(entries: Iterable[Entry]) -> tuple[Variable, ...]:
    variables = []
    for entry in entries:
        shape, dtype = shape_and_dtype(entry.value)
        variables.append(
            Variable(
                path=entry.path,
                shape=shape,
                dtype=dtype,
                read=partial(host_array, entry.value),
                attributes={"dtype": "bfloat16"} if dtype.name == "bfloat16" else {},
            )
        )
    return tuple(variables)


def _fill_legacy(model: Any, optimizer: Any, file: h5py.File) -> None:
    try:
        keras_private.save_legacy(model, file, optimizer=optimizer)
    except NotImplementedError as error:
        raise ModelNotReadyError(
            model=model.name, missing="serialisable as a whole", hint=_SERIALISE
        ) from error
    except ValueError as error:
        # Keras names datasets after variables there, which need not be unique (Adafactor's are not).
        raise ModelNotReadyError(
            model=model.name, missing="storable in the older .h5 format", hint=f"save it as .keras; {error}"
        ) from error


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
        raise ModelNotReadyError(model=model.name, missing="built", hint=f"{_BUILD}: {error}") from error


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
