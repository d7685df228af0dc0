"""How a payload is divided among processes, as text: the size of each process's part, and how layers are sharded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckptstore.printable import printable
from ckptstore.report.table import table_of
from ckptstore.report.text import size_text
from ckptstore.report.variables import layer_name

if TYPE_CHECKING:
    from ckptstore.formats.sharded.shards import Division
    from ckptstore.report.table import TextTable

# Of more processes the smallest and the largest part are shown.
_MOST_SIZES = 8
_MOST_SHARDINGS = 3


def sizes_text(division: Division) -> str:
    """Return the number of processes, and the sizes of their parts.

    Example:
        >>> from ckptstore.formats.sharded.shards import Division
        >>> sizes_text(Division(sizes=(2_000_000, 1_000_000), parts={}, shardings={}))
        '2 processes: 2.00 MB, 1.00 MB'
    """
    sizes = division.sizes
    count = f"{len(sizes)} process{'es' if len(sizes) > 1 else ''}"
    if len(sizes) > _MOST_SIZES:
        return f"{count}: {size_text(min(sizes))} to {size_text(max(sizes))}"
    return f"{count}: {', '.join(map(size_text, sizes))}"


def sharding_text(sharding: Mapping[str, Any]) -> str:
    """Return the axis of the mesh that each dimension is divided along, with its size; "-" for none.

    Example:
        >>> sharding_text({"axes": {"batch": 2, "model": 4}, "spec": [None, "model"]})
        '-, model/4'
        >>> sharding_text({"axes": {"batch": 2}, "spec": []})
        'scalar'
    """
    axes = sharding["axes"]

    def text(names: Any) -> str:
        several = [names] if isinstance(names, str) else names or []
        return "+".join(f"{name}/{axes.get(name, '?')}" for name in several) or "-"

    return ", ".join(map(text, sharding["spec"])) or "scalar"


def sharding_table(division: Division) -> TextTable:
    """Return a table of the layers whose variables are in several parts, or are divided over devices."""
    layers: dict[str, tuple[dict[str, None], int]] = {}
    for path, parts in division.parts.items():
        sharding = division.shardings.get(path)
        if parts == 1 and (sharding is None or not any(sharding["spec"])):
            continue
        found, most = layers.get(layer_name(path), ({}, 0))
        found["" if sharding is None else sharding_text(sharding)] = None
        layers[layer_name(path)] = found, max(most, parts)
    columns = {
        "layer": [printable(name) for name in layers],
        "sharding": [_joined(list(filter(None, found))) for found, _ in layers.values()],
        "parts": [f"{most:,}" for _, most in layers.values()],
    }
    return table_of(columns, left=("layer", "sharding"))


def _joined(shardings: list[str]) -> str:
    more = "; …" if len(shardings) > _MOST_SHARDINGS else ""
    return printable("; ".join(shardings[:_MOST_SHARDINGS]) + more)
