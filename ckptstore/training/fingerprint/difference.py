"""Finds where two fingerprints differ, in the model's order, and names the place in the model's words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

NOTHING = "nothing"
_LAYERS = "layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDifference:
    """A place at which a checkpoint and a model differ.

    Attributes:
        where: Such as ``"layers[2] (Dropout).rate"``.
        in_checkpoint: What the checkpoint has there, such as ``"0.3"`` or ``"nothing"``.
        in_model: What the model has there.
    """

    where: str
    in_checkpoint: str
    in_model: str


def differences(saved: Any, live: Any, where: str = "", *, strict: bool = True) -> Iterator[ConfigDifference]:
    """Yield where two plain values differ, in the order of the live one.

    Args:
        saved: The value in the checkpoint.
        live: The value of the model.
        where: The place that both stand for.
        strict: False to ignore keys that only one side has in a class of Keras' own: another version's.
    """
    if _is_object(saved) and _is_object(live):
        yield from _of_objects(saved, live, where, strict=strict)
    elif isinstance(saved, Mapping) and isinstance(live, Mapping):
        yield from _of_mappings(saved, live, where, strict=strict)
    elif isinstance(saved, list) and isinstance(live, list):
        yield from _of_lists(saved, live, where, strict=strict)
    elif saved != live or isinstance(saved, bool) != isinstance(live, bool):
        yield ConfigDifference(where=where, in_checkpoint=_shown(saved), in_model=_shown(live))


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("class"), str)


def _of_objects(
    saved: Mapping[str, Any], live: Mapping[str, Any], where: str, *, strict: bool
) -> Iterator[ConfigDifference]:
    kind = live["class"]
    if saved["class"] != kind:
        yield ConfigDifference(where=where or "model", in_checkpoint=saved["class"], in_model=kind)
        return
    at = f"{where} ({kind})" if where.endswith("]") else where
    # One side may have no configuration.
    config = (saved.get("config"), live.get("config"))
    if all(isinstance(side, Mapping) for side in config):
        # Keras adds and drops options from version to version; another's class does so when its code changes.
        yield from _of_mappings(*config, at, strict=strict, own="." not in kind)  # type: ignore[arg-type]
    elif None not in config:
        yield from differences(*config, at, strict=strict)
    for key in ("inputs", "variables"):
        if key == "inputs" or (saved.get(key) is not None and live.get(key) is not None):
            yield from differences(saved.get(key), live.get(key), _joined(at, key), strict=strict)


def _of_mappings(
    saved: Mapping[str, Any], live: Mapping[str, Any], where: str, *, strict: bool, own: bool = False
) -> Iterator[ConfigDifference]:
    for key in [*live, *(key for key in saved if key not in live)]:
        at = _joined(where, key)
        if key in live and key in saved:
            if key == _LAYERS and isinstance(live[key], list) and isinstance(saved[key], list):
                yield from _of_layers(saved[key], live[key], at, strict=strict)
            else:
                yield from differences(saved[key], live[key], at, strict=strict)
        elif own and (not strict or not (saved.get(key) or live.get(key))):
            continue
        else:
            yield ConfigDifference(
                where=at,
                in_checkpoint=_shown(saved[key]) if key in saved else NOTHING,
                in_model=_shown(live[key]) if key in live else NOTHING,
            )


def _of_lists(saved: list[Any], live: list[Any], where: str, *, strict: bool) -> Iterator[ConfigDifference]:
    if len(saved) != len(live):
        yield ConfigDifference(where=where, in_checkpoint=_shown(saved), in_model=_shown(live))
        return
    for number, (first, other) in enumerate(zip(saved, live, strict=True)):
        yield from differences(first, other, f"{where}[{number}]", strict=strict)


def _of_layers(saved: list[Any], live: list[Any], where: str, *, strict: bool) -> Iterator[ConfigDifference]:
    """Compare layers in their order; the first that was put in or taken out ends it, since all others moved."""
    for number in range(max(len(saved), len(live))):
        at = f"{where}[{number}]"
        saved_layer, live_layer = saved[number : number + 1], live[number : number + 1]
        if len(saved) == len(live):
            yield from differences(_alone(saved_layer[0]), _alone(live_layer[0]), at, strict=strict)
        elif not saved_layer or not live_layer or not _same(saved_layer[0], live_layer[0]):
            yield from _of_moved(saved[number:], live[number:], at, strict=strict)
            return
    for number, (first, other) in enumerate(zip(saved, live, strict=True)):
        if isinstance(first, Mapping) and isinstance(other, Mapping) and _kind(first) == _kind(other):
            inputs = f"{where}[{number}] ({_kind(other)}).inputs"
            yield from differences(first.get("inputs"), other.get("inputs"), inputs, strict=strict)


def _of_moved(saved: list[Any], live: list[Any], where: str, *, strict: bool) -> Iterator[ConfigDifference]:
    """Yield the first difference between layers where one side has more."""
    fewer, more = sorted((saved, live), key=len)
    surplus = len(more) - len(fewer)
    if fewer and not _same(fewer[0], more[surplus]) and _kind(fewer[0]) == _kind(more[0]):
        # The same kind of layer, with another configuration; that one side has more is only the next difference.
        yield from differences(_alone(saved[0]), _alone(live[0]), where, strict=strict)
        return
    kind = str(_kind(more[0]))
    added = more is live
    yield ConfigDifference(
        where=where, in_checkpoint=NOTHING if added else kind, in_model=kind if added else NOTHING
    )


def _same(first: Any, other: Any) -> bool:
    return next(differences(_alone(first), _alone(other), strict=False), None) is None


def _alone(layer: Any) -> Any:
    """Return a layer without where its inputs come from: these are other places once a layer was put in."""
    return {key: value for key, value in layer.items() if key != "inputs"} if _is_object(layer) else layer


def _kind(layer: Any) -> Any:
    return layer.get("class") if isinstance(layer, Mapping) else layer


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _shown(value: Any) -> str:
    """Return a value in a few words."""
    if value is None:
        return "None"
    if _is_object(value):
        return str(value["class"])
    if isinstance(value, list):
        text = f"[{', '.join(map(_shown, value))}]"
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
