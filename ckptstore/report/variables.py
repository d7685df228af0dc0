"""Tables of variables: the layers of one checkpoint, and the changes between two."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptstore.printable import printable
from ckptstore.report.table import table_of
from ckptstore.report.text import metric_text, size_text

if TYPE_CHECKING:
    from ckptstore.report.table import TextTable
    from ckptstore.store.diff import Difference, VariableChange

# Shape and dtype name of each variable by its path in the payload.
Layout = Mapping[str, tuple[tuple[int, ...], str]]
_VARIABLE_NAME = re.compile(r"/?(?:vars/)?[^/]+$")
_OPTIMIZERS = ("optimizer", "optimizer_weights")
_MAX_SHAPES = 4
# The number of bits in a dtype's name, which need not be at its end: float8_e4m3fn.
_BITS = re.compile(r"([0-9]+)(?:_|$)")


@dataclass(slots=True)
class _Layer:
    shapes: list[tuple[int, ...]]
    dtypes: set[str]
    values: int = 0
    nbytes: int = 0


_HEADINGS = ("layer", "variables", "dtype", "values", "size")


def layer_table(layout: Layout) -> TextTable:
    """Return a table of a checkpoint's layers; see `layer_rows`."""
    cells = list(zip(*layer_rows(layout), strict=True))
    return table_of(dict(zip(_HEADINGS, cells, strict=True)), left=_HEADINGS[:3])


def layer_rows(layout: Layout) -> list[tuple[str, str, str, str, str]]:
    """Return name, shapes, dtype, number of values and size of each layer; the optimizer is one, the last row is all.

    Args:
        layout: Shape and dtype name of each variable by its path in the payload.
    """
    layers: dict[str, _Layer] = {}
    for path, (shape, dtype) in layout.items():
        count = math.prod(shape)
        for name in (layer_name(path), "all"):
            layer = layers.setdefault(name, _Layer([], set()))
            layer.shapes.append(shape)
            layer.dtypes.add(dtype)
            layer.values += count
            layer.nbytes += count * _itemsize(dtype)
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


def layer_name(path: str) -> str:
    """Return the layer that a variable belongs to, by its path.

    Example:
        >>> layer_name("layers/dense/vars/0"), layer_name("optimizer/vars/3")
        ('layers/dense', 'optimizer')
    """
    first = path.split("/", maxsplit=1)[0]
    return first if first in _OPTIMIZERS else _VARIABLE_NAME.sub("", path) or "model"


def _shapes(name: str, layer: _Layer) -> str:
    if name in (*_OPTIMIZERS, "all") or len(layer.shapes) > _MAX_SHAPES:
        return f"{len(layer.shapes)}"
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in layer.shapes)


def _itemsize(dtype: str) -> int:
    bits = _BITS.search(dtype)
    return 1 if bits is None else max(1, int(bits[1]) // 8)


def change_table(changes: Sequence[VariableChange]) -> TextTable:
    """Return a table of how much variables have changed."""
    columns = {
        "variable": [printable(change.path) for change in changes],
        "shape": ["x".join(map(str, change.shape)) or "scalar" for change in changes],
        "norm": [_number(change.norm) for change in changes],
        "change": [_number(change.change_norm) for change in changes],
        "of norm": [_share(change.change_norm / change.norm) if change.norm else "" for change in changes],
        "largest": [_number(change.change_max) for change in changes],
        "changed": [_share(change.changed_share) for change in changes],
    }
    return table_of(columns, left=("variable",))


def metrics_table(difference: Difference) -> TextTable:
    """Return a table of the metrics of two checkpoints."""
    pairs = difference.metrics
    columns = {
        "metric": [printable(name) for name in pairs],
        f"version {difference.first.version}": [metric_text(first) for first, _ in pairs.values()],
        f"version {difference.second.version}": [metric_text(second) for _, second in pairs.values()],
        "change": [
            "" if first is None or second is None else f"{second - first:+.5g}"
            for first, second in pairs.values()
        ],
    }
    return table_of(columns, left=("metric",))


def _number(value: float) -> str:
    return f"{value:.4g}"


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"
