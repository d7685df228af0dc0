"""Snapshots of Keras models for the store; what stays the same from save to save is computed only once.

Capturing a model with a thousand variables takes some tens of milliseconds, its configuration half as much; copying as
many small arrays takes a few. So the capture is reused as long as the model has the very same variables, and Keras
would write only variables. The configuration is reused until an epoch ends, and then as long as making it again would
take a noticeable part of the time since.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import h5py
import keras

from ckptstore.distributed.job import Job
from ckptstore.errors import InvalidArgumentError, ModelNotReadyError, UnserialisableModelError
from ckptstore.formats.registry import by_name
from ckptstore.formats.snapshot import FitState, Snapshot, Variable, VariableKinds
from ckptstore.keras import private
from ckptstore.keras.model.copy import Copier
from ckptstore.keras.model.divided import DividedModel
from ckptstore.keras.model.processes import (
    refuse_forms_of_layers,
    refuse_save_by_all,
    refuse_shared_arrays,
)
from ckptstore.keras.private.capture import Capture, CapturedValue
from ckptstore.keras.state import optimizers as keras_optimizers
from ckptstore.keras.state import training_state
from ckptstore.keras.state.arrays import host_array, shape_and_dtype
from ckptstore.keras.state.training_state import HowBuilt, UnsavedVariables
from ckptstore.records import Format

_COMPILE = (
    "model.compile(...); in a loop written by hand pass optimizer= for an optimizer of Keras, or for any other "
    "objects={'optimizer': optimizer}; weights_only=True saves a checkpoint that cannot be resumed from"
)
# Making the configuration again may take this part of the time since it was last made.
_DOCUMENTS_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class _CapturedModel:
    """A captured model, and everything derived from the capture.

    Attributes:
        key: Numbers of trained variables, and ids of all objects of the model; `held` keeps these alive, so that no
            other object can have one of the ids.
        captured: The capture itself.
        variables: The same as variables of a payload.
        groups: The variables that Keras would not write.
        optimizers: All optimizers.
        built: How the model and its optimizers were built.
        divided: Which of the variables' parts this process writes.
        held: The objects in `key`.
    """

    key: tuple[int, ...]
    captured: Capture
    variables: tuple[Variable, ...]
    groups: UnsavedVariables
    optimizers: list[Any]
    built: HowBuilt
    divided: DividedModel
    held: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Documents:
    """Members of an archive, with the model and time they were made for.

    Attributes:
        may_have_assets: True if a layer may have files, now or later.
    """

    members: Mapping[str, bytes]
    may_have_assets: bool
    key: tuple[int, ...]
    made_at: float
    cost_s: float


class Snapshots:
    """Snapshots of one model; each must be written or copied before training continues.

    A configuration that changes during a fit, without a change of a variable or its `trainable`, appears in a later
    ``.keras`` payload: that of the epoch's end, or with short epochs, that of the first epoch's end after a hundred
    times the time that making it takes. Layers' files are always current.

    Args:
        job: The processes that save the model together, of which this is one: then each snapshot has the parts that
            this process writes, and its training state. None for saves of this process alone.
    """

    def __init__(self, job: Job | None = None) -> None:
        self._job = job if job is not None and job.has_others else None
        self._cached: _CapturedModel | None = None
        self._documents: _Documents | None = None
        self._has_configuration = True

    def leave_out_configuration(self) -> None:
        """Take all snapshots from now on without the model's configuration and its layers' files.

        A format with documents then holds what Keras' files of weights hold.
        """
        self._has_configuration = False

    def check(self, model: Any) -> None:
        """Refuse before training what `take` would refuse later, as far as that is known before a model is built.

        Raises:
            SeveralProcessesError: Several processes share a model with a layer that saves in a form of its own.
        """
        if self._job is not None and model.built:
            refuse_forms_of_layers(checked_capture(model, None).entries, self._job)

    def take(
        self,
        model: Any,
        *,
        format: Format,
        optimizer: Any = None,
        weights_only: bool = False,
        fit: FitState | None = None,
        resumable: bool = True,
        in_epoch: bool = False,
        objects: Mapping[str, Any] | None = None,
    ) -> Snapshot:
        """Take a snapshot of a model; nothing is written, and its variables are read when the payload is written.

        Args:
            model: A built Keras model.
            format: The name of the payload's format.
            optimizer: The optimizer of a training loop written by hand, for a model that is not compiled.
            weights_only: True to leave out optimizer and training state.
            fit: Position of the running fit, for the training state.
            resumable: False to leave out only the training state.
            in_epoch: True in the middle of an epoch, where an earlier configuration is good enough.
            objects: Objects of a training loop written by hand, by name, for the training state.

        Raises:
            SeveralProcessesError: Several processes share the model's arrays, and do not save together; or a single
                process writes the format.
            SplitValueError: Other processes hold parts of a value that the training state needs whole.
            ModelNotReadyError: The model has no weights yet; or is not compiled, with neither `optimizer`, `objects`
                nor `weights_only`; or each process of JAX has weights of its own.
            UnserialisableModelError: It is to be saved whole, and Keras cannot make its configuration.
            InvalidArgumentError: `optimizer` is given for a model that was compiled with another one; or a value in
                `objects` cannot be kept.
        """
        if self._job is None:
            refuse_shared_arrays("a save", model)
        require_built(model)
        if self._job is not None:
            refuse_save_by_all(model, format, self._job)
        if weights_only:
            return self._weights_snapshot(model, format)
        extra = uncompiled_optimizer(model, optimizer)
        if extra is None and objects is None and not model.compiled:
            raise ModelNotReadyError(model=model.name, missing="compiled", hint=_COMPILE)
        kinds = (None if fit is None else fit.variables) or private.variables_by_kind(model)
        written_as = by_name(format)
        documents = written_as.has_documents and self._has_configuration
        found, members = self._captured(model, extra, kinds, documents=documents, in_epoch=in_epoch)
        state = (
            training_state.collect(
                found.groups,
                found.optimizers,
                fit,
                objects,
                found.built,
                replica=self._job is not None and not self._job.is_leader,
            )
            if resumable
            else None
        )
        if written_as.keras_fills_it:
            return Snapshot(format=format, state=state, fill=partial(_fill_legacy, model, extra))
        parts = found.divided.now() if written_as.has_shards else found.divided.whole
        return Snapshot(
            format=format,
            variables=parts.variables,
            attributes=found.captured.attributes,
            documents=members,
            state=state,
            arrays=parts.arrays,
            copy=parts.copier,
            shards=parts.shards if written_as.has_shards else None,
        )

    def _weights_snapshot(self, model: Any, format: Format) -> Snapshot:
        written_as = by_name(format)
        if not written_as.allows_weights_only:
            raise InvalidArgumentError(
                argument="weights_only",
                value=True,
                reason="the older .h5 format holds whole models",
                hint="format='weights'",
            )
        captured = checked_capture(model, None, documents=written_as.has_documents)
        if self._job is not None:
            refuse_forms_of_layers(captured.entries, self._job)
        entries = [entry for entry in captured.entries if entry.owner == "model"]
        variables = _variables(entries)
        copier = Copier([entry.value for entry in entries])
        parts = DividedModel(variables, copier, self._job).now()
        return Snapshot(
            format=format,
            variables=parts.variables,
            attributes={
                group: values
                for group, values in captured.attributes.items()
                if not group.startswith("optimizer/")
            },
            documents=captured.documents,
            shards=parts.shards if written_as.has_shards else None,
        )

    def _captured(
        self, model: Any, extra: Any, kinds: VariableKinds, *, documents: bool, in_epoch: bool
    ) -> tuple[_CapturedModel, Mapping[str, bytes]]:
        optimizers = private.optimizers_of(model, extra)
        held = _held(model, optimizers, kinds)
        # The order and the number of trained variables tell which ones are trained; some models need the flags.
        flags = () if private.uses_trainable_flags(model) else map(_is_trainable, held)
        # An optimizer without slots may have been built since.
        trained = [len(private.variables_trained_by(optimizer)) for optimizer in optimizers]
        key = len(kinds[0]), *trained, *map(id, held), *flags
        kept = self._cached if self._cached is not None and self._cached.key == key else None
        if kept is not None:
            members = self._cached_documents(model, key, in_epoch=in_epoch) if documents else {}
            if members is not None:
                return kept, members
        began = time.monotonic()
        captured = checked_capture(model, extra, documents=documents)
        if self._job is not None:
            refuse_forms_of_layers(captured.entries, self._job)
        values = [entry.value for entry in captured.entries]
        variables = _variables(captured.entries)
        if documents:
            self._keep(captured.documents, key, began, may_have_assets=captured.may_have_assets)
        found = kept or _CapturedModel(
            key=key,
            captured=captured,
            variables=variables,
            groups=training_state.unsaved_variables(
                model, optimizers, captured, replica=self._job is not None and not self._job.is_leader
            ),
            optimizers=optimizers,
            built=HowBuilt(
                layers=private.build_record(model),
                trained=keras_optimizers.trained_indices(model),
                slots=captured.optimizer_groups(),
                scoped=[private.builds_in_scope(optimizer) for optimizer in optimizers],
            ),
            divided=DividedModel(variables, Copier(values), self._job),
            held=held,
        )
        self._cached = (
            found if captured.exact and all(entry.is_variable for entry in captured.entries) else None
        )
        return found, captured.documents

    def _cached_documents(
        self, model: Any, key: tuple[int, ...], *, in_epoch: bool
    ) -> Mapping[str, bytes] | None:
        """Return the earlier documents, or new ones with the present configuration; None if that takes a capture.

        Layers' files are a part of what they have learned, so they are collected at each save.
        """
        kept = self._documents
        if kept is None or kept.key != key or kept.may_have_assets:
            return None
        began = time.monotonic()
        if in_epoch or kept.cost_s > _DOCUMENTS_SHARE * (began - kept.made_at):
            return kept.members
        with unserialisable_named(model):
            members = private.config_documents(model)
        if members is not None:
            self._keep(members, key, began, may_have_assets=False)
        return members

    def _keep(
        self, members: Mapping[str, bytes], key: tuple[int, ...], began: float, *, may_have_assets: bool
    ) -> None:
        now = time.monotonic()
        self._documents = _Documents(
            members=members, may_have_assets=may_have_assets, key=key, made_at=now, cost_s=now - began
        )


def _held(model: Any, optimizers: Iterable[Any], kinds: VariableKinds) -> tuple[Any, ...]:
    slots = [variable for optimizer in optimizers for variable in optimizer.variables]
    left_out = () if private.uses_trainable_flags(model) else model.variables
    return (model, *optimizers, *chain.from_iterable(kinds), *left_out, *slots)


def _is_trainable(value: Any) -> bool:
    return bool(getattr(value, "trainable", False))


# --- conditions ----------------------------------------------------------------------------------


def require_built(model: Any) -> None:
    """Refuse a model that has no weights yet.

    A model without a `call` of its own is never ``built`` by Keras; its layers are, and they are what is saved.

    Raises:
        ModelNotReadyError: It has none.
    """
    if not model.built and not model.weights:
        raise not_built(model)


def not_built(model: Any, more: str = "") -> ModelNotReadyError:
    """Return the error for a model that is not built, or not wholly; `more` is added to its hint."""
    hint = "call it once on data, or model.build(input_shape)"
    if type(model).call is keras.Model.call:
        names = [layer.name for layer in model.layers if not layer.built]
        which = f", here {', '.join(names[:3])}{', …' if len(names) > 3 else ''}" if names else ""
        hint = f"build each of its layers with layer.build(input_shape){which}"
    return ModelNotReadyError(model=model.name, missing="built", hint=hint + more)


def uncompiled_optimizer(model: Any, optimizer: Any) -> Any:
    """Return `optimizer` if the model does not know it, else None.

    Raises:
        InvalidArgumentError: The model is compiled with another one.
    """
    if optimizer is None or any(optimizer is known for known in private.optimizers_of(model)):
        return None
    if model.compiled:
        raise InvalidArgumentError(
            argument="optimizer",
            value=type(optimizer).__name__,
            reason="the model is compiled with another optimizer",
            hint="leave optimizer= out, or do not compile the model",
        )
    return optimizer


def checked_capture(model: Any, optimizer: Any, *, documents: bool = False) -> Capture:
    """Return everything that Keras would write for a model.

    Raises:
        UnserialisableModelError: Keras cannot make the model's configuration, and it is asked for.
    """
    with unserialisable_named(model):
        return private.capture_model(model, optimizer=optimizer, documents=documents)


@contextmanager
def unserialisable_named(model: Any) -> Iterator[None]:
    """Raise the error that a model has no configuration with the model's name.

    Raises:
        UnserialisableModelError: The block found that it has none.
    """
    try:
        yield
    except private.NoConfigurationError as error:
        raise UnserialisableModelError(
            model=model.name, reason=str(error), is_final=isinstance(error.__cause__, NotImplementedError)
        ) from error


# --- parts ---------------------------------------------------------------------------------------


def _variables(entries: Iterable[CapturedValue]) -> tuple[Variable, ...]:
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
        private.save_legacy_h5(model, file, optimizer=optimizer)
    except NotImplementedError as error:
        raise UnserialisableModelError(model=model.name, reason=f"NotImplementedError: {error}") from error
    except ValueError as error:
        # There Keras names datasets after variables, and these names need not be unique (Adafactor's are not).
        raise ModelNotReadyError(
            model=model.name, missing="storable in the older .h5 format", hint=f"save it as .keras; {error}"
        ) from error
