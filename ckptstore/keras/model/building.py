"""Building of a live model's variables as far as a payload has them, before the payload is compared and loaded.

Keras builds a model's layers and optimizers at the latest with its first batch. A model that is to be resumed has seen
none, so that its variables are made from what the payload tells, or else by the caller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ckptstore.formats.snapshot import TrainingState
from ckptstore.keras import private
from ckptstore.keras.model.snapshots import checked_capture, not_built
from ckptstore.keras.state import training_state

_CONFIG = "config.json"


def build_as_saved(
    model: Any,
    layout: Mapping[str, Any],
    documents: Mapping[str, bytes],
    state: TrainingState | None,
    build: Callable[[], None] | None = None,
) -> None:
    """Build what a payload has variables for and the model has not.

    Args:
        model: The model.
        layout: The payload's variables by path.
        documents: Members of a ``.keras`` payload.
        state: Its training state.
        build: Builds what is still missing then, by means of its own; may raise.

    Raises:
        ModelNotReadyError: Something is missing that is not built.
    """
    lacks_metrics = build is not None and training_state.lacks_metrics(model, state)
    if model.built and private.all_layers_built(model) and not lacks_metrics:
        return
    how = training_state.how_built(state)
    error = _build_from_config(model, documents)
    private.build_from_record(model, how.layers)
    if build is not None and (lacks_metrics or _missing(model, layout, how.slots) is not None):
        try:
            build()
        except Exception as raised:
            # Any error of the model's own step.
            error = raised
    missing = _missing(model, layout, how.slots)
    if missing is not None and not private.all_layers_built(model):
        hint = "; or take a new one from Checkpoint.load_model()" if _CONFIG in documents else ""
        hint += f"; the checkpoint has {missing}"
        hint += "" if error is None else f"; building it raises {type(error).__name__}: {error}"
        raise not_built(model, hint) from error


def _build_from_config(model: Any, documents: Mapping[str, bytes]) -> Exception | None:
    """Build a whole model as Keras' loading does; return the error where its own code raises one."""
    config = json.loads(documents[_CONFIG]).get("build_config") if _CONFIG in documents else None
    if not config or model.built:
        return None
    try:
        model.build_from_config(config)
    except Exception as error:
        return error
    # A subclass's layers are built now, but `built` may still be False; Keras' loading sets it, too.
    model.built = True
    return None


def _missing(model: Any, layout: Mapping[str, Any], slots: Iterable[str]) -> str | None:
    """Return the path of a variable that a payload has and a model's layers have not; None if they have all."""
    entries = checked_capture(model, None).entries
    known = {entry.path for entry in entries}
    # An optimizer's variables are made later, and what a layer saves in its own way it knows alone.
    others = {_group(entry.path) for entry in entries if entry.owner == "optimizer" or not entry.is_variable}
    others.update(slots)
    for path in layout:
        if path not in known and _group(path) not in others and not path.startswith("optimizer/"):
            return path
    return None


def _group(path: str) -> str:
    return path.rpartition("/")[0]
