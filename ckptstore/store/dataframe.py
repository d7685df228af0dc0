"""Checkpoints and epochs as pandas tables, if pandas is installed: a row for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ckptstore.errors import MissingPackageError
from ckptstore.records import Checkpoint, Epoch

if TYPE_CHECKING:
    from pandas import DataFrame

# Columns and their types: whole numbers that may be missing stay whole numbers.
_FIELDS = {
    "version": "int64",
    "run": "object",
    "epoch": "int64",
    "batch": "Int64",
    "step": "Int64",
    "created_at": "datetime64[ns, UTC]",
    "nbytes": "int64",
    "format": "object",
    "state": "object",
    "resumable": "bool",
    "pinned": "bool",
    "tags": "object",
    "blocked_s": "float64",
    "total_s": "float64",
    "path": "object",
}
_EPOCH_FIELDS = {
    "epoch": "int64",
    "batch": "Int64",
    "step": "Int64",
    "version": "int64",
    "created_at": "datetime64[ns, UTC]",
}


def dataframe_of(checkpoints: Iterable[Checkpoint]) -> DataFrame:
    """Return a table of checkpoints: their fields, then a column for each metric.

    A metric with the name of a field gets the prefix ``metric.``.

    Raises:
        MissingPackageError: pandas is not installed.
    """
    return _dataframe(checkpoints, _FIELDS)


def dataframe_of_epochs(epochs: Iterable[Epoch]) -> DataFrame:
    """Return a table of epochs, as `dataframe_of` does of checkpoints.

    Raises:
        MissingPackageError: pandas is not installed.
    """
    return _dataframe(epochs, _EPOCH_FIELDS)


def _dataframe(records: Iterable[Checkpoint | Epoch], fields: Mapping[str, str]) -> DataFrame:
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingPackageError(package="pandas", needed_for="to_dataframe()", extra="pandas") from error
    columns: dict[str, list[Any]] = {name: [] for name in fields}
    metrics: dict[str, dict[int, float]] = {}
    count = 0
    for row, record in enumerate(records):
        for name, values in columns.items():
            value = getattr(record, name)
            values.append(str(value) if name == "path" else value)
        for name, number in record.metrics.items():
            metrics.setdefault(name, {})[row] = number
        count = row + 1
    table: dict[str, Any] = {name: pd.Series(values, dtype=fields[name]) for name, values in columns.items()}
    for name, known in metrics.items():
        column = [known.get(row, float("nan")) for row in range(count)]
        table[f"metric.{name}" if name in table else name] = pd.Series(column, dtype="float64")
    return pd.DataFrame(table)
