"""Parses position and metrics from file names such as ``12-0.25.keras``, given the template that made them."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import PurePath

from ckptstore.errors import InvalidArgumentError

_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?(?:nan|inf)"
_FIXED = re.compile(r"[<>=^+ 0-9]*\.([0-9]+)f")
_COUNTS = ("epoch", "batch")


class NamePattern:
    """A template of file names, as for ModelCheckpoint; only its last path component counts.

    Args:
        template: Such as ``"{epoch:02d}-{val_loss:.2f}.keras"``; ``{epoch}`` and ``{batch}`` count from 1.

    Raises:
        InvalidArgumentError: It is not a template, or has a placeholder without a name.

    Example:
        >>> NamePattern("models/{epoch:02d}-{val_loss:.2f}.keras").read("12-0.25.keras")
        {'epoch': 12.0, 'val_loss': 0.25}
    """

    def __init__(self, template: str) -> None:
        self.template = template
        try:
            parsed = list(string.Formatter().parse(PurePath(template).name))
        except ValueError as error:
            raise InvalidArgumentError(argument="pattern", value=template, reason=str(error)) from error
        self._names: list[str] = []
        self._pattern = re.compile("".join(self._part(*part[:3]) for part in parsed))

    def _part(self, literal: str, name: str | None, spec: str | None) -> str:
        text = re.escape(literal)
        if name is None:
            return text
        if not name or not re.fullmatch(r"[^\[\].]+", name) or name.isdecimal():
            raise InvalidArgumentError(
                argument="pattern", value=self.template, reason=f"has a placeholder {{{name}}} without a name"
            )
        if name in self._names:
            return f"{text}(?P=p{self._names.index(name)})"
        self._names.append(name)
        return f"{text}(?P<p{len(self._names) - 1}>{_shape(name, spec or '')})"

    def read(self, name: str) -> Mapping[str, float]:
        """Return the values in a file's name, by placeholder.

        Raises:
            InvalidArgumentError: It was not made by this template.
        """
        match = self._pattern.fullmatch(name)
        if match is None:
            raise InvalidArgumentError(
                argument="pattern", value=self.template, reason=f"does not fit the name {name!r}"
            )
        return {key: float(match[f"p{index}"]) for index, key in enumerate(self._names)}


def _shape(name: str, spec: str) -> str:
    if name in _COUNTS:
        return " *[0-9]+ *"
    fixed = _FIXED.fullmatch(spec)
    if fixed is None:
        return f" *(?:{_NUMBER}) *"
    digits = f"\\.[0-9]{{{int(fixed[1])}}}" if int(fixed[1]) else ""
    return f" *(?:[-+]?[0-9]+{digits}|[-+]?(?:nan|inf)) *"
