"""The payload format of a fit's saves, and what it does with a model that cannot be saved whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ckptstore.errors import UnserialisableModelError
from ckptstore.formats.registry import by_name
from ckptstore.records import Format
from ckptstore.store.model_adapter import adapter_for
from ckptstore.system import messages

Taken = TypeVar("Taken")


class PayloadFormat:
    """Decides in which format a fit is saved; where that is not the wanted one, one warning says so.

    Args:
        wanted: The wanted format.
        is_fixed: True if no other will do, as for a file whose name tells the format.
        leave_out: Has the payloads of the wanted format hold no configuration; None if they become files of weights
            instead.
    """

    def __init__(
        self, wanted: Format, *, is_fixed: bool, leave_out: Callable[[], object] | None = None
    ) -> None:
        self._format = wanted
        self._is_fixed = is_fixed
        self._leave_out = leave_out
        self._is_left_out = False

    def check(self, model: Any) -> None:
        """Decide before training begins.

        Raises:
            UnserialisableModelError: The model cannot be saved in the wanted format, and no other will do.
        """
        if self._is_left_out:
            return
        try:
            adapter_for(model).check_format(model, self._format)
        except UnserialisableModelError as error:
            self._use_weights(error)

    def take(self, take: Callable[[Format], Taken]) -> Taken:
        """Return what `take` returns for the format; decides again where the model cannot be saved in it any more.

        Raises:
            UnserialisableModelError: As `check`.
        """
        try:
            return take(self._format)
        except UnserialisableModelError as error:
            self._use_weights(error)
        return take(self._format)

    def leave_out_configuration(self) -> None:
        """Save without the model's configuration, in the same format."""
        assert self._leave_out is not None
        self._leave_out()
        self._is_left_out = True

    def _use_weights(self, error: UnserialisableModelError) -> None:
        if self._is_fixed or self._is_left_out or not by_name(self._format).is_whole_model:
            raise error
        if self._leave_out is None:
            self._format = "weights"
        else:
            self.leave_out_configuration()
        messages.warn(
            f"{error.message}: its checkpoints hold weights, optimizers and training state. The same script resumes "
            "from them, and Checkpoint.load_weights(model) loads them into a model made by its code; "
            "Checkpoint.load_model() needs a get_config() that returns plain values",
            UserWarning,
        )
