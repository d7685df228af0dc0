"""The payload format of a fit's saves: the one that is wanted, or weights for a model that cannot be saved whole."""

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
    """

    def __init__(self, wanted: Format, *, is_fixed: bool) -> None:
        self._format = wanted
        self._is_fixed = is_fixed

    def check(self, model: Any) -> None:
        """Decide before training begins.

        Raises:
            UnserialisableModelError: The model cannot be saved in the wanted format, and no other will do.
        """
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

    def _use_weights(self, error: UnserialisableModelError) -> None:
        if self._is_fixed or not by_name(self._format).is_whole_model:
            raise error
        self._format = "weights"
        messages.warn(
            f"{error.message}: its checkpoints hold weights, optimizers and training state. The same script resumes "
            "from them, and Checkpoint.load_weights(model) loads them into a model made by its code; "
            "Checkpoint.load_model() needs a get_config() that returns plain values",
            UserWarning,
        )
