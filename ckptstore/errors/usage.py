"""Errors of calls, models and paths that cannot be used; nothing was changed, unless an error says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ckptstore.errors.base import CheckpointStoreError


class ModelMismatchError(CheckpointStoreError, ValueError):
    """The checkpoint does not fit the model; nothing was changed, unless a `RefusedByLayerError` says so.

    Attributes:
        where: Path of the first variable that differs, as in the payload.
        in_checkpoint: What the checkpoint has there, such as ``"(3, 8) float32"`` or ``"nothing"``.
        in_model: What the model has there.
    """

    where: str
    in_checkpoint: str
    in_model: str

    def __init__(
        self, *, where: str, in_checkpoint: str, in_model: str, hint: str = "", **facts: Any
    ) -> None:
        super().__init__(
            f"the checkpoint does not fit the model: {where} is {in_checkpoint} in the checkpoint "
            f"and {in_model} in the model",
            hint=hint or "the model is unchanged; build and compile it as it was when it was saved",
            where=where,
            in_checkpoint=in_checkpoint,
            in_model=in_model,
            **facts,
        )


class RunMismatchError(CheckpointStoreError, ValueError):
    """The run has finished, and by another fit than this one, which would get that fit's weights; nothing was changed.

    Attributes:
        run: The run.
        where: The first difference, such as ``"learning_rate"`` or ``"x.shape"``.
        in_run: What the finished run has there.
        in_fit: What the fit that was about to begin has there.
    """

    run: str
    where: str
    in_run: str
    in_fit: str

    def __init__(self, *, run: str, where: str, in_run: str, in_fit: str) -> None:
        super().__init__(
            f"run {run!r} was finished by another fit: {where} was {in_run} there and is {in_fit} in this fit",
            hint=("seed what draws or splits the data; or " if where.endswith(".values") else "")
            + "give this fit a run of its own (run='...'), or start this one over and keep its checkpoints "
            "(resume='never'); the model was left as it was",
            run=run,
            where=where,
            in_run=in_run,
            in_fit=in_fit,
        )


class RefusedByLayerError(ModelMismatchError):
    """The checkpoint is intact and fits the model, but a layer could not load it.

    Attributes:
        put_back: True where the layer's own code refused it: the model is unchanged. False where Keras' code failed
            twice, from lack of memory or because the disk failed meanwhile: the model is changed in part.
    """

    put_back: bool

    def __init__(self, *, reason: str, put_back: bool = True) -> None:
        super().__init__(
            where="a layer's own state",
            in_checkpoint="there",
            in_model=f"refused by the layer ({reason})",
            hint="the model's variables were restored to their earlier values"
            if put_back
            else "the model is changed in part: do not use it before a restore has succeeded",
            put_back=put_back,
        )


class ObjectsMismatchError(CheckpointStoreError, ValueError):
    """The objects of a checkpoint are not those that were given as ``objects=``; nothing was changed.

    Attributes:
        where: The first difference: an object's name, or the place in it, such as ``"optimizer.mu['kernel']"``.
        in_checkpoint: What the checkpoint has there, such as ``"AdamW"``, ``"(3, 8) float32"`` or ``"nothing"``.
        in_objects: What was given.
    """

    where: str
    in_checkpoint: str
    in_objects: str

    def __init__(
        self, *, where: str, in_checkpoint: str, in_objects: str, hint: str = "", **facts: Any
    ) -> None:
        super().__init__(
            f"the checkpoint does not fit objects=: {where} is {in_checkpoint} in the checkpoint "
            f"and {in_objects} in objects=",
            hint=hint or "nothing was changed; make the objects as they were when they were saved",
            where=where,
            in_checkpoint=in_checkpoint,
            in_objects=in_objects,
            **facts,
        )


class RefusedByObjectError(ObjectsMismatchError):
    """The checkpoint is intact, but one of the objects raised an error when it was to load its state.

    Attributes:
        reason: The object's own error; also the cause of this one.
    """

    reason: str

    def __init__(self, *, where: str, reason: str) -> None:
        super().__init__(
            where=where,
            in_checkpoint="there",
            in_objects=f"refused by the object ({reason})",
            hint="the model and all objects are as they were; make the object as it was when it was saved",
            reason=reason,
        )


class ModelNotReadyError(CheckpointStoreError, ValueError):
    """The model is not built or not compiled, and so cannot be saved or restored."""

    model: str
    missing: str

    def __init__(self, *, model: str, missing: str, hint: str, **facts: Any) -> None:
        super().__init__(
            f"model {model!r} is not {missing}", hint=hint, model=model, missing=missing, **facts
        )


class UnserialisableModelError(ModelNotReadyError):
    """Keras cannot describe the model by a configuration, so that it can be saved as weights, but not whole.

    Attributes:
        reason: What its configuration raises.
        is_final: True if the model has no configuration at all, so that building it changes nothing.
    """

    reason: str
    is_final: bool

    def __init__(self, *, model: str, reason: str, is_final: bool = True) -> None:
        super().__init__(
            model=model,
            missing=f"serialisable as a whole ({reason})",
            hint="Keras asks for a get_config() that returns plain values; or save its weights: format='weights', or "
            "save_weights_only=True and a filepath that ends in .weights.h5",
            reason=reason,
            is_final=is_final,
        )


class SeveralProcessesError(CheckpointStoreError, RuntimeError):
    """Several processes train one model together, and this works in one alone; nothing was saved or changed.

    Attributes:
        operation: What was refused, such as ``"StoreCheckpoint"``.
        by: What connects the processes, such as ``"jax.distributed"``.
        processes: Their number.
        process: The number of this one, from 0.
    """

    operation: str
    by: str
    processes: int
    process: int

    def __init__(self, *, operation: str, by: str, processes: int, process: int, hint: str = "") -> None:
        usual = (
            "on JAX StoreCheckpoint(directory, save_freq=...) as a callback of every process saves and resumes a fit, "
            "and elsewhere ckptstore.open_in_job a loop by hand"
        )
        super().__init__(
            f"{operation} works in one process, and this is process {process} of {processes} that train together "
            f"({by})",
            hint=hint or f"{usual}: ckptstore guide several-processes",
            operation=operation,
            by=by,
            processes=processes,
            process=process,
        )


class SplitValueError(CheckpointStoreError, RuntimeError):
    """A value that is needed whole is split over several processes; nothing was saved or changed.

    Attributes:
        where: The variable's path, or "".
        shape: Its shape.
        parts: The number of its parts.
    """

    where: str
    shape: tuple[int, ...]
    parts: int

    def __init__(self, *, where: str, shape: tuple[int, ...], parts: int) -> None:
        super().__init__(
            f"{where or 'a value'} of shape {shape} is split over several processes in {parts} parts, of which this "
            "process holds only some",
            hint="a layout of None in each dimension keeps it whole on every process; only weights and optimizer "
            "variables that Keras saves as they are may be split",
            where=where,
            shape=shape,
            parts=parts,
        )


class NotAStoreError(CheckpointStoreError, ValueError):
    """The path holds something other than a store, which must not be written to."""

    path: Path
    reason: str

    def __init__(self, *, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: not a ckptstore store: {reason}",
            hint="nothing was changed; choose an empty or new directory",
            path=path,
            reason=reason,
        )


class InvalidArgumentError(CheckpointStoreError, ValueError):
    """An argument has an invalid value; nothing was changed."""

    argument: str
    value: object
    reason: str

    def __init__(self, *, argument: str, value: object, reason: str, hint: str = "") -> None:
        shown = repr(value)
        if len(shown) > 80:
            shown = f"{shown[:60]}… ({len(shown)} characters)"
        super().__init__(
            f"{argument}={shown}: {reason}", hint=hint, argument=argument, value=value, reason=reason
        )


class ReadOnlyError(CheckpointStoreError, PermissionError):
    """A store that is open for reading cannot be changed."""

    store: Path
    operation: str

    def __init__(self, *, store: Path, operation: str) -> None:
        super().__init__(
            f"{store}: {operation} needs a store that is open for writing",
            hint="open it with CheckpointStore(path)",
            store=store,
            operation=operation,
        )


class MissingPackageError(CheckpointStoreError, ImportError):
    """An optional package that is needed is not installed."""

    package: str
    needed_for: str
    extra: str

    def __init__(self, *, package: str, needed_for: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs {package}, which is not installed",
            hint=f"pip install 'ckptstore[{extra}]'",
            package=package,
            needed_for=needed_for,
            extra=extra,
        )
