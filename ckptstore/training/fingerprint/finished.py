"""Finds where a fit differs from the one that brought a run to its end.

A finished run hands its weights to the next fit of its name, so that this must be the same fit: the same optimizer,
loss, metrics and data. More epochs may follow. What a schedule or a callback changed while the run trained is no
difference, nor are versions and devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckptstore.keras.state import optimizers
from ckptstore.training.fingerprint import fit_data
from ckptstore.training.fingerprint.difference import ConfigDifference, differences

# Of how a model was compiled: what decides about the result. Others decide how it is computed.
_COMPILED = ("loss", "loss_weights", "metrics", "weighted_metrics")


def is_finished(values: Mapping[str, Any], *, epoch: int, in_epoch: bool) -> bool:
    """Return True if the fit that saved a checkpoint had ended with it: at its last epoch, or stopped by a callback.

    Args:
        values: The state of the fit in the checkpoint.
        epoch: The epoch of the checkpoint.
        in_epoch: Whether the checkpoint was taken inside the epoch.
    """
    if in_epoch or "epochs" not in values:
        return False
    return bool(values.get("stopped")) or epoch + 1 >= int(values["epochs"])


def differences_from(
    values: Mapping[str, Any],
    saved: Mapping[str, Any],
    live: Mapping[str, Any],
    *,
    trained: int,
    epochs: int | None,
    values_count: bool,
) -> Iterator[ConfigDifference]:
    """Yield the differences of a fit from the one that finished a run: hyperparameters, data, epochs.

    Args:
        values: The state of the fit that finished the run, at its last save.
        saved: Its fingerprint; parts that an older version did not write are left out.
        live: The fingerprint of the fit that begins.
        trained: Epochs that the run has trained.
        epochs: Total number of epochs of the fit that begins; None if not known.
        values_count: True if data of other values, and fewer epochs, count as differences.
    """
    yield from _of_settings(saved, live, values.get(optimizers.RATES) or [])
    if not values_count:
        return
    if epochs is not None and epochs < trained:
        yield ConfigDifference(where="epochs", in_checkpoint=str(trained), in_model=str(epochs))
    yield from _of_values(saved, live)


def data_differences(saved: Mapping[str, Any], live: Mapping[str, Any]) -> Iterator[ConfigDifference]:
    """Yield all differences of the data but those of its sizes."""
    for first, other in _data(saved, live):
        yield from differences(_without_sizes(first), _without_sizes(other))
    yield from _of_values(saved, live)


def _of_settings(
    saved: Mapping[str, Any], live: Mapping[str, Any], rates: list[float | None]
) -> Iterator[ConfigDifference]:
    yield from _of_rates(saved.get(optimizers.RATES) or [], live[optimizers.RATES], rates)
    pairs = list(zip(saved.get("optimizer") or [], live["optimizer"], strict=False))
    for number, (first, other) in enumerate(pairs):
        yield from differences(
            first, other, "optimizer" if len(pairs) == 1 else f"optimizers[{number}]", strict=False
        )
    compiled = saved.get("compile") or {}
    for name in _COMPILED if compiled else ():
        yield from differences(compiled.get(name), live["compile"].get(name), name)
    for first, other in _data(saved, live):
        yield from differences(first, other)


def _of_values(saved: Mapping[str, Any], live: Mapping[str, Any]) -> Iterator[ConfigDifference]:
    for first, other in _data(saved, live, values=True):
        yield from differences(first, other)


def _without_sizes(described: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in described.items() if key not in fit_data.SIZES}


def _of_rates(
    begun: list[float | None], live: list[float | None], kept: list[float | None]
) -> Iterator[ConfigDifference]:
    """Yield the learning rates that the script sets otherwise than when the run began.

    The saved rate is none of these: a fit that continues with the model that has just been trained begins with it.
    """
    for number, (then, now) in enumerate(zip(begun, live, strict=False)):
        at_save = kept[number] if number < len(kept) else None
        if then is not None and now is not None and now not in (then, at_save):
            where = "learning_rate" if len(live) == 1 else f"learning_rates[{number}]"
            yield ConfigDifference(where=where, in_checkpoint=f"{then:g}", in_model=f"{now:g}")


def _data(
    saved: Mapping[str, Any], live: Mapping[str, Any], *, values: bool = False
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield both descriptions of the data, with the digests alone or without them; nothing if one is not known."""
    first, other = saved.get("data"), live.get("data")
    if isinstance(first, Mapping) and isinstance(other, Mapping):
        yield _only(first, values=values), _only(other, values=values)


def _only(described: Mapping[str, Any], *, values: bool) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in described.items():
        if isinstance(value, Mapping):
            kept[key] = _only(value, values=values)
        elif (key == fit_data.VALUES) == values:
            kept[key] = value
    return kept
