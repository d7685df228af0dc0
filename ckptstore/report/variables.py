"""Variables of checkpoints as people read them: the layers of one, and what moved between two."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptstore.report.text import metric_text, printable, size_text, table_of

if TYPE_CHECKING:
    from ckptstore.report.table import TextTable
    from ckptstore.store.diff import Difference, VariableChange

Layout = Mapping[str, tuple[tuple[int, ...], str]]
_OWN = re.compile(r"/?(?:vars/)?[^/]+$")
_OPTIMIZERS = ("optimizer", "optimizer_weights")
_SHAPES_MOST = 4
# Bytes of a value where they do not stand at the end of the dtype's name.
_BITS = re.compile(r"([0-9]+)(?:_|$)")


@dataclass(slots=True)
class _Layer:
    shapes: list[tuple[int, ...]]
    dtypes: set[str]
    values: int = 0
    nbytes: int = 0


_HEAD = ("layer", "variables", "dtype", "values", "size")


def layer_table(layout: Layout) -> TextTable:
    """Return a table of a checkpoint's layers; see `layer_rows`."""
    cells = list(zip(*layer_rows(layout), strict=True))
    return table_of(dict(zip(_HEAD, cells, strict=True)), left=_HEAD[:3])


def layer_rows(layout: Layout) -> list[tuple[str, str, str, str, str]]:
    """Return name, shapes, dtype, values and size of each layer; the optimizer is one, and the last row for all.

    Args:
        layout: Shape and dtype name of each variable by its path in the payload.
    """
    layers: dict[str, _Layer] = {}
    for path, (shape, dtype) in layout.items():
        count = math.prod(shape)
        for name in (_owner(path), "all"):
            layer = layers.setdefault(name, _Layer([], set()))
            layer.shapes.append(shape)
            layer.dtypes.add(dtype)
            layer.values += count
            layer.nbytes += count * _size(dtype)
    layers["all"] = layers.pop("all", _Layer([], set()))
    return [
        (
            printable(name),
            _shapes(name, layer),
            ", ".join(sorted(layer.dtypes)),
            f"{layer.values:,}",
            size_text(layer.nbytes),
        )
        for name, layer in layers.items()
    ]


def _owner(path: str) -> str:
    first = path.split("/", maxsplit=1)[0]
    return first if first in _OPTIMIZERS else _OWN.sub("", path) or "model"


def _shapes(name: str, layer: _Layer) -> str:
    if name in (*_OPTIMIZERS, "all") or len(layer.shapes) > _SHAPES_MOST:
        return f"{len(layer.shapes)}"
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in layer.shapes)


def _size(dtype: str) -> int:
    bits = _BITS.search(dtype)
    return 1 if bits is None else max(1, int(bits[1]) // 8)


def change_table(changes: Sequence[VariableChange]) -> TextTable:
    """Return a table of how far variables have moved."""
    columns = {
        "variable": [printable(one.path) for one in changes],
        "shape": ["x".join(map(str, one.shape)) or "scalar" for one in changes],
        "norm": [_number(one.norm) for one in changes],
        "change": [_number(one.change_norm) for one in changes],
        "of norm": [_share(one.change_norm / one.norm) if one.norm else "" for one in changes],
        "largest": [_number(one.change_max) for one in changes],
        "changed": [_share(one.changed_share) for one in changes],
    }
    return table_of(columns, left=("variable",))


def metrics_table(difference: Difference) -> TextTable:
    """Return a table of the metrics of two checkpoints."""
    pairs = difference.metrics
    columns = {
        "metric": [printable(name) for name in pairs],
        f"version {difference.first.version}": [metric_text(one) for one, _ in pairs.values()],
        f"version {difference.second.version}": [metric_text(two) for _, two in pairs.values()],
        "change": ["" if one is None or two is None else f"{two - one:+.5g}" for one, two in pairs.values()],
    }
    return table_of(columns, left=("metric",))


def _number(value: float) -> str:
    return f"{value:.4g}"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"
