"""Columns that hold more than SQLite does: aware times and JSON objects, each kept as text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Text, TypeDecorator
from sqlalchemy.engine import Dialect

from ckptstore.errors import InvalidArgumentError
from ckptstore.records import json_time


class UtcTime(TypeDecorator[datetime]):
    """An aware time, kept as ISO 8601 text in UTC, which sorts by time and reads well in any SQL shell."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        """Return the text of an aware time."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise InvalidArgumentError(argument="time", value=value, reason="has no time zone")
        return json_time(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> datetime | None:
        """Return the aware time of a text."""
        return None if value is None else datetime.fromisoformat(value)


class JsonObject(TypeDecorator[Mapping[str, Any]]):
    """A JSON object, kept as text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Mapping[str, Any] | None, dialect: Dialect) -> str | None:
        """Return the JSON text, in standard JSON only."""
        if value is None:
            return None
        try:
            return json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(argument="JSON", value=value, reason=str(error)) from error

    def process_result_value(self, value: str | None, dialect: Dialect) -> Mapping[str, Any] | None:
        """Return the object of a JSON text."""
        if value is None:
            return None
        document: dict[str, Any] = json.loads(value)
        return document
