"""Types of the manifest's columns: how times and JSON are kept in a database that has neither."""

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
        return None if value is None else _json_text(dict(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Mapping[str, Any] | None:
        """Return the object of a JSON text."""
        if value is None:
            return None
        document: dict[str, Any] = json.loads(value)
        return document


class JsonTexts(TypeDecorator[tuple[str, ...]]):
    """A JSON array of strings, kept as text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:
        """Return the JSON text."""
        return None if value is None else _json_text(list(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...] | None:
        """Return the strings of a JSON text."""
        return None if value is None else tuple(map(str, json.loads(value)))


def _json_text(value: dict[str, Any] | list[str]) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(argument="JSON", value=value, reason=str(error)) from error
