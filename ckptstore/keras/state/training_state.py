"""Training state: everything that a run needs to resume and that Keras leaves out of its files.

These are variables, the global random generators, and the position of the fit (with callbacks and data). Keras saves
neither the states of seed generators (of Dropout and other random layers) nor metrics, and saves some layers in another
form than the live one (LoRA is merged into its kernel). The document's ``"kind"`` and ``"version"`` allow for later
additions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ckptstore.errors import ModelMismatchError, SplitValueError
from ckptstore.formats.snapshot import FitState, TrainingState
from ckptstore.keras import private
from ckptstore.keras.private.capture import Capture
from ckptstore.keras.state import objects as objects_state
from ckptstore.keras.state import random_state, tree
from ckptstore.keras.state.arrays import host_array, shape_and_dtype
from ckptstore.keras.state.replicas import ReplicaValue, replica_values
from ckptstore.keras.state.shards import spans_processes
from ckptstore.system import messages
from ckptstore.system.arrays import Array

KIND = "keras"
VERSION = 1

_VARIABLES, _METRICS, _REPLICAS, _FIT = "variables", "metrics", "replicas", "fit"
_UNTRACKED, _OWN = "untracked", "own"
_BUILD, _TRAINED, _SLOTS, _SCOPED = "build", "trained", "slots", "built_in_scope"

UnsavedVariables = dict[str, list[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A value that is to be assigned to a live variable."""

    variable: Any
    value: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class HowBuilt:
    """How a model and its optimizers were built, so that another process can build what it has not called yet.

    Attributes:
        layers: What `ckptstore.keras.private.build_record` returned.
        trained: What `ckptstore.keras.state.optimizers.trained_indices` returned.
        slots: Groups of the payload that hold optimizers' variables.
        scoped: For each optimizer, whether it built the one that it wraps in its own name scope.
    """

    layers: str = ""
    trained: Sequence[Sequence[int]] = ()
    slots: Sequence[str] = ()
    scoped: Sequence[bool] = ()


def collect(
    groups: UnsavedVariables,
    optimizers: list[Any],
    fit: FitState | None = None,
    objects: objects_state.Objects | None = None,
    built: HowBuilt | None = None,
    *,
    replica: bool = False,
) -> TrainingState:
    """Return the training state of a model, as views of its variables.

    Args:
        groups: Its variables that Keras' own file leaves out.
        optimizers: Its optimizers; their classes are recorded, since the variables of several classes look the same.
        fit: Position of the running fit, if one of its callbacks saves.
        objects: Objects of a loop written by hand, by name.
        built: How the model and its optimizers were built.
        replica: True in a process that trains a replica of process 0's model, which has what is equal on both.

    Raises:
        InvalidArgumentError: A value of the fit or of an object is neither JSON nor an array; the message says where.
        SplitValueError: Other processes hold parts of a variable that Keras' own file leaves out.
    """
    fit = fit or FitState(values={})
    arrays: dict[str, Array] = {}
    document: dict[str, Any] = {"kind": KIND, "version": VERSION, "optimizers": _kinds(optimizers)}
    if built is not None:
        document |= {_BUILD: built.layers, _TRAINED: built.trained, _SLOTS: list(built.slots)}
        document[_SCOPED] = list(built.scoped)
    for group, variables in groups.items():
        document[group] = [str(variable.path) for variable in variables]
        arrays |= {f"{group}/{index}": _value_of(variable, fit) for index, variable in enumerate(variables)}
    if objects:
        # Before the generators: a loader that has not begun draws from them when it tells its state.
        document[objects_state.GROUP], found = objects_state.collect(objects, replica=replica)
        arrays |= found
    generators = fit.generators or random_state.capture()
    document[random_state.GROUP] = generators.document
    arrays |= {f"{random_state.GROUP}/{name}": array for name, array in generators.arrays.items()}
    if fit.values:
        document[_FIT], found = tree.pack(dict(fit.values), _FIT)
        arrays |= found
    return TrainingState(document=document, arrays=arrays)


def _value_of(variable: Any, fit: FitState) -> Array:
    key = id(variable.value) if isinstance(variable, ReplicaValue) else id(variable)
    if key in fit.overrides:
        return fit.overrides[key]
    try:
        return host_array(variable)
    except SplitValueError as error:
        raise SplitValueError(where=str(variable.path), shape=error.shape, parts=error.parts) from error


def fit_values(state: TrainingState | None) -> dict[str, Any]:
    """Return the values of the fit in a training state; empty if no fit was running at the save."""
    if state is None or _FIT not in state.document:
        return {}
    values: dict[str, Any] = tree.unpack(state.document[_FIT], state.arrays, _FIT)
    return values


def how_built(state: TrainingState | None) -> HowBuilt:
    """Return how the model of a training state was built, as far as the state tells."""
    document = {} if state is None else state.document
    return HowBuilt(
        layers=document.get(_BUILD, ""),
        trained=document.get(_TRAINED, ()),
        slots=document.get(_SLOTS, ()),
        scoped=document.get(_SCOPED, ()),
    )


def lacks_metrics(model: Any, state: TrainingState | None) -> bool:
    """Return True if a training state has variables of metrics that the model has not built yet."""
    return state is not None and len(model.metrics_variables) < len(state.document.get(_METRICS, ()))


def plan_assignments(
    live: UnsavedVariables, optimizers: list[Any], state: TrainingState | None
) -> list[Assignment]:
    """Check that training state matches a model, and return the assignments that restore it; changes nothing.

    Metrics that the model has not built yet are left out: Keras builds them with the first batch, from zero.

    Args:
        live: The model's variables, from `unsaved_variables`.
        optimizers: Its optimizers.
        state: The training state.

    Raises:
        ModelMismatchError: The optimizer is of another class, or a variable differs.
    """
    if state is None or state.document.get("kind") != KIND or state.document.get("version", 0) > VERSION:
        return []
    _check_kinds(state.document.get("optimizers", []), _kinds(optimizers))
    assignments = list(_matched(_VARIABLES, live[_VARIABLES], state))
    if _UNTRACKED in state.document:  # a payload of an earlier version has none
        assignments += _matched(_UNTRACKED, live[_UNTRACKED], state)
    if len(live[_METRICS]) == len(state.document.get(_METRICS, ())):
        try:
            assignments += _matched(_METRICS, live[_METRICS], state)
        except ModelMismatchError:
            # Other metrics are no reason to refuse: they measure the training and are not part of it.
            return assignments
    if live.get(_OWN) and _OWN in state.document:
        assignments += _matched(_OWN, live[_OWN], state)
    if not other_replicas(live, state):
        # Last: an assignment to a variable sets it on all replicas.
        assignments += _matched(_REPLICAS, live[_REPLICAS], state)
    return assignments


def other_replicas(live: UnsavedVariables, state: TrainingState | None) -> str | None:
    """Return a short line where values of replicas were saved, and there are other replicas now; None otherwise."""
    saved = len(state.document.get(_REPLICAS, ())) if state is not None else 0
    if saved == len(live[_REPLICAS]):
        return None
    return (
        f"the checkpoint has {saved} values of single replicas and the model {len(live[_REPLICAS])}: moving statistics "
        "and metrics of each replica begin with the values of all"
    )


def restore_generators(state: TrainingState | None) -> None:
    """Restore the global random generators to their states at the save.

    A warning names those that this process cannot restore: those of another backend, or of a device that is missing.
    """
    saved = None if state is None else random_state.from_training_state(state.document, state.arrays)
    left = [] if saved is None else random_state.restore(saved)
    if left:
        messages.warn(f"random generators that could not be restored: {', '.join(left)}")


def unsaved_variables(
    model: Any, optimizers: list[Any], captured: Capture, *, replica: bool = False
) -> UnsavedVariables:
    """Return the variables that Keras' own file leaves out, in the model's own stable order.

    Args:
        model: The model.
        optimizers: Its optimizers.
        captured: What Keras would write for it.
        replica: True where another process's replica of the model is the one that is saved. Its weights are equal to
            those here; but what a layer changes itself, such as the moving statistics of a batch normalisation, it has
            computed of other data. So that belongs to the state of this process.
    """
    saved = captured.saved_ids() if captured.exact else {id(variable) for variable in model.weights}
    left_out = [variable for variable in model.variables if id(variable) not in saved]
    if captured.exact:
        # Some releases of Keras leave out what is in a container of containers.
        slots = [variable for optimizer in optimizers for variable in optimizer.variables]
        left_out += [variable for variable in slots if id(variable) not in saved]
    # A metric that is an attribute of the model is saved as part of it.
    metrics = [variable for variable in model.metrics_variables if id(variable) not in saved]
    moving = [variable for variable in model.variables if not variable.trainable]
    return {
        _VARIABLES: left_out,
        _METRICS: metrics,
        _UNTRACKED: [
            variable for variable in private.untracked_variables(model) if id(variable) not in saved
        ],
        _REPLICAS: replica_values([*moving, *model.metrics_variables]),
    } | ({_OWN: _own(model, saved)} if replica else {})


def _own(model: Any, saved: Collection[int]) -> list[Any]:
    found = [
        variable
        for variable in (*private.untrained_variables(model), *model.metrics_variables)
        if id(variable) in saved
    ]
    raw = private.raw_values(found)
    replicated = {id(replica.variable) for replica in replica_values(found)}
    return [
        variable
        for variable, value in zip(found, raw, strict=True)
        if not spans_processes(value) and id(variable) not in replicated
    ]


def _matched(group: str, variables: list[Any], state: TrainingState) -> Iterator[Assignment]:
    paths = list(state.document.get(group, ()))
    for index in range(max(len(paths), len(variables))):
        if index >= len(variables):
            raise ModelMismatchError(where=paths[index], in_checkpoint="a variable", in_model="nothing")
        variable = variables[index]
        if index >= len(paths):
            raise ModelMismatchError(
                where=str(variable.path), in_checkpoint="nothing", in_model=_shown(variable)
            )
        value = state.arrays[f"{group}/{index}"]
        if shape_and_dtype(value) != shape_and_dtype(variable):
            raise ModelMismatchError(
                where=paths[index], in_checkpoint=_shown(value), in_model=_shown(variable)
            )
        yield Assignment(variable=variable, value=value)


def same_optimizer_kinds(optimizers: list[Any], state: TrainingState | None) -> bool:
    """Return True if training state was saved with optimizers of the same classes, or does not say."""
    return state is None or state.document.get("optimizers", _kinds(optimizers)) == _kinds(optimizers)


def _kinds(optimizers: list[Any]) -> list[str]:
    return [type(optimizer).__name__ for optimizer in optimizers]


def _check_kinds(saved: list[str], live: list[str]) -> None:
    if saved != live:
        raise ModelMismatchError(
            where="optimizer",
            in_checkpoint=" of ".join(saved) or "nothing",
            in_model=" of ".join(live) or "nothing",
            hint="compile the model with the optimizer that it was saved with, or load its weights alone "
            "with Checkpoint.load_weights(model); the model was left as it was",
        )


def _shown(value: Any) -> str:
    shape, dtype = shape_and_dtype(value)
    return f"{shape} {dtype}"
