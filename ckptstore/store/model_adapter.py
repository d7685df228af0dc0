"""The interface between the store and a model's framework.

The store knows no framework: `ckptstore.records.frameworks` names the module that implements this for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ckptstore.errors import InvalidArgumentError
from ckptstore.records.frameworks import ADAPTERS, adapter_named

if TYPE_CHECKING:
    from ckptstore.distributed.job import Job
    from ckptstore.formats.snapshot import FitState, Snapshot, TrainingState
    from ckptstore.records import Checkpoint, Format


class Snapshots(Protocol):
    """Snapshots of a framework's models."""

    def check(self, model: Any) -> None:
        """Refuse before training what `take` would refuse later, as far as that is known before a model is built."""

    def leave_out_configuration(self) -> None:
        """Take all snapshots from now on without the model's configuration."""

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
        """Take a snapshot of a model; nothing is written.

        Args:
            model: A built model.
            format: The format of the payload.
            optimizer: The optimizer of a custom training loop, for a model that is not compiled.
            weights_only: True to leave out optimizer and training state.
            fit: State of the running fit, which joins the training state.
            resumable: False to leave out only the training state.
            in_epoch: True in the middle of an epoch, where the configuration of an earlier snapshot may be reused.
            objects: Objects of a training loop written by hand, by name, for the training state.

        Raises:
            ModelNotReadyError: It is not built; or not compiled, with neither `optimizer`, `objects` nor
                `weights_only`.
        """


class ModelAdapter(Protocol):
    """The interface that the store uses of a framework."""

    def snapshots(self, job: Job | None = None) -> Snapshots:
        """Return a `Snapshots`; one object for all saves of a fit computes only once what stays the same.

        Args:
            job: The processes that save the model together, of which this is one; None for saves of this one alone.
        """

    def check_format(self, model: Any, format: Format) -> None:
        """Check that a model can be saved in a format, as far as that is known before it is built.

        Raises:
            UnserialisableModelError: It is to be saved whole, and nothing can describe it.
        """

    def restore(
        self,
        model: Any,
        checkpoint: Checkpoint,
        *,
        optimizer: Any = None,
        generators: bool = False,
        objects: Mapping[str, Any] | None = None,
    ) -> TrainingState | None:
        """Verify the payload, check that it fits, then restore weights, optimizer and training state.

        Returns the training state. `generators` is True to restore the process' global random generators too; then
        `objects` must have all that the checkpoint has.

        Raises:
            CorruptPayloadError: The payload is damaged; the model is unchanged.
            ModelMismatchError: It does not fit; the model is unchanged.
            ObjectsMismatchError: It does not fit the objects; nothing is changed.
        """

    def load_model(self, checkpoint: Checkpoint, **kwargs: Any) -> Any:
        """Verify the payload and return the whole model in it."""

    def load_weights(self, checkpoint: Checkpoint, model: Any) -> None:
        """Verify the payload, check that it fits, and load its weights into `model`."""


def adapter_for(model: object) -> ModelAdapter:
    """Return the adapter of the framework that `model` belongs to.

    Raises:
        InvalidArgumentError: No known framework made it.
    """
    for base in type(model).__mro__:
        framework = base.__module__.partition(".")[0]
        if framework in ADAPTERS:
            adapter: ModelAdapter = adapter_named(framework)
            return adapter
    hint = "pass a keras.Model"
    if any(base.__module__.startswith("torch.nn.") for base in type(model).__mro__):
        hint += "; keras.Sequential([keras.layers.TorchModuleWrapper(module)]) makes one of a module of torch"
    raise InvalidArgumentError(
        argument="model",
        value=type(model).__name__,
        reason="is not a model of a known framework (keras)",
        hint=hint,
    )
