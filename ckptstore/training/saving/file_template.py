"""File names with placeholders, such as ``models/{epoch:02d}-{val_loss:.2f}.keras``.

A template gives the place and format of the files, the directory of their store, and the run's name by default.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ckptstore.errors import InvalidArgumentError
from ckptstore.formats.payload_format import PayloadFormat
from ckptstore.formats.registry import by_file_name
from ckptstore.storage.layout import DROP_IN_DIRECTORY
from ckptstore.system import messages
from ckptstore.validation import check_run

_POSITION = ("epoch", "batch")
_LONGEST_RUN = 80


class CheckpointPath:
    """A file name template, resolved against the present working directory: a later chdir does not move it.

    Args:
        filepath: The template, as for Keras' ModelCheckpoint. ``{epoch}`` and ``{batch}`` count from 1; any
            log may be named, with a format specification. ``~`` is not expanded, as in Keras.
        weights_only: True when it names weights files.

    Raises:
        InvalidArgumentError: Not a local path; wrong extension (in Keras' words); a placeholder that no log
            could ever fill (positional, or with a specification that does not suit a number).

    Example:
        >>> path = CheckpointPath("/models/{epoch:02d}-{val_loss:.2f}.keras")
        >>> path.fill(epoch=0, batch=None, logs={"val_loss": 0.25})
        '/models/01-0.25.keras'
        >>> path.format, str(path.directory), path.run
        ('keras', '/models', 'epoch-val_loss')
    """

    def __init__(self, filepath: str | os.PathLike[str], *, weights_only: bool = False) -> None:
        self.template = _path_text(filepath)
        self._format = _format_of(self.template, weights_only=weights_only)
        self.format = self._format.name
        self._fields = tuple(_fields(self.template))
        self._base = Path.cwd()
        self._warned: set[str] = set()
        for name, spec, converted in self._fields:
            _check_specification(self.template, name, spec, converted=converted)

    @property
    def has_placeholders(self) -> bool:
        """True when different checkpoints may appear under different names."""
        return bool(self._fields)

    @property
    def directory(self) -> Path:
        """The deepest directory of the template that no placeholder changes, absolute."""
        head = self._before_placeholders() if self._fields else self._plain()
        return self.absolute(os.path.dirname(head))  # noqa: PTH120 - text, where a trailing "/" matters

    @property
    def store(self) -> Path:
        """The directory of the store, absolute."""
        return self.directory / DROP_IN_DIRECTORY

    @property
    def run(self) -> str:
        """A name for the run, made from the file name; another one for each template of a directory.

        The name alone for ``.keras``; the other formats add theirs, so that ``best.keras`` and
        ``best.weights.h5`` beside each other are two runs.
        """
        suffix = self._format.suffix
        inside = self.template.removesuffix(suffix) if self._fields else self._plain().removesuffix(suffix)
        if self._fields:
            literal = re.sub(r"\{([^{}:!.\[]*)[^{}]*\}", r"\1", inside)
            inside = literal.replace("{{", "{").replace("}}", "}")
        head, tail = str(self.directory), str(self.absolute(inside))
        plain = os.path.relpath(tail, head).replace(os.sep, "-")
        return _run_name(plain + self._format.run_suffix, self.template)

    def absolute(self, filled: str) -> Path:
        """Return a filled template as an absolute path."""
        return Path(os.path.normpath(self._base / filled))

    def fill(self, *, epoch: int, batch: int | None, logs: Mapping[str, Any]) -> str:
        """Return the file name of a checkpoint, as the user spelled it.

        A placeholder for which there is no value becomes ``nan``, with one warning per name.

        Args:
            epoch: Zero-based index of the epoch.
            batch: Zero-based index of the batch, or None.
            logs: The logs at hand; a log named ``batch`` has precedence over the batch's index, as in Keras.
        """
        values: dict[str, Any] = {**logs, "epoch": epoch + 1}
        if batch is not None:
            values.setdefault("batch", batch + 1)
        return _Filling(values, self._warn).vformat(self.template, (), values)

    def _before_placeholders(self) -> str:
        text = ""
        for literal, field, _, _ in string.Formatter().parse(self.template):
            text += literal
            if field is not None:
                break
        return text

    def _plain(self) -> str:
        return self.template.replace("{{", "{").replace("}}", "}")

    def _warn(self, name: str, problem: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            messages.warn(
                f"{self.template!r}: {problem}; file names will have another text there", UserWarning
            )


class _Filling(string.Formatter):
    """`str.format` that never ends a run over one placeholder."""

    def __init__(self, values: Mapping[str, Any], warn: Callable[[str, str], None]) -> None:
        self._values = values
        self._warn = warn

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        name = _root(field_name)
        if name not in self._values:
            self._warn(name, f"there is no {name!r} to put into it")
            return _Missing(), name
        try:
            return super().get_field(field_name, args, kwargs)
        except (AttributeError, LookupError, TypeError, ValueError):
            self._warn(field_name, f"there is no {field_name!r} to put into it")
            return _Missing(), name

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return value if isinstance(value, _Missing) else super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        try:
            return str(format(value, format_spec))
        except (ValueError, TypeError) as error:
            self._warn(format_spec, f"{value!r} does not suit {format_spec!r} ({error})")
            return str(value)


class _Missing:
    def __format__(self, format_spec: str) -> str:
        return "nan"


def _path_text(filepath: object) -> str:
    text = os.fspath(filepath) if isinstance(filepath, os.PathLike) else filepath
    if not isinstance(text, str):
        raise InvalidArgumentError(argument="filepath", value=filepath, reason="must be a str or os.PathLike")
    if "\0" in text:
        raise InvalidArgumentError(
            argument="filepath", value=filepath, reason="must not hold a NUL character"
        )
    if re.match(r"[a-z][a-z0-9+.-]*://", text):
        raise InvalidArgumentError(
            argument="filepath",
            value=filepath,
            reason="must be a local path",
            hint="save on a local disk and copy what is published from there",
        )
    return text


def _format_of(template: str, *, weights_only: bool) -> PayloadFormat:
    """Return the format that an extension stands for; refuses others in Keras' words."""
    found = by_file_name(template, whole_model=not weights_only)
    if found is not None and not found.is_directory:
        return found
    if weights_only:
        raise InvalidArgumentError(
            argument="filepath",
            value=template,
            reason="When using `save_weights_only=True` in `ModelCheckpoint`, the filepath provided must end "
            f"in `.weights.h5` (Keras weights format). Received: filepath={template}",
        )
    raise InvalidArgumentError(
        argument="filepath",
        value=template,
        reason="The filepath provided must end in `.keras` (Keras model format). "
        f"Received: filepath={template}",
    )


def _fields(template: str) -> Iterator[tuple[str, str, bool]]:
    """Yield name, specification, and whether it is converted to text, of each placeholder."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise _bad_template(template, str(error)) from error
    for _, field, spec, conversion in parsed:
        if field is None:
            continue
        name = _root(field)
        if not name or name.isdecimal():
            raise _bad_template(template, "a placeholder needs a name, such as {epoch} or {val_loss:.2f}")
        if "{" in (spec or ""):
            raise _bad_template(template, "a placeholder cannot hold another one")
        yield name, spec or "", bool(conversion)


def _check_specification(template: str, name: str, spec: str, *, converted: bool) -> None:
    """Refuse a specification that suits no number: Keras counts epochs and batches, and logs floats."""
    samples: tuple[object, ...] = ("text",) if converted else (1,) if name in _POSITION else (0.5, 1)
    for sample in samples:
        try:
            format(sample, spec)
        except ValueError as error:
            problem = error
        else:
            return
    raise _bad_template(template, f"{{{name}:{spec}}}: {problem}") from problem


def _bad_template(template: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        argument="filepath", value=template, reason=reason, hint="write {{ and }} for braces in a file name"
    )


def _root(field: str) -> str:
    """Return the name that a placeholder begins with: ``logs`` of ``logs[loss].real``."""
    return re.split(r"[.\[]", field, maxsplit=1)[0]


def _run_name(text: str, template: str) -> str:
    """Make a run's name of a text; a digest of the template is added where characters had to be changed."""
    name = re.sub(r"[^A-Za-z0-9_.=+@-]+", "-", text)
    name = re.sub(r"\.{2,}", ".", name)[:_LONGEST_RUN]
    name = re.sub(r"^[^A-Za-z0-9_]+", "", name)
    if name != text or not name or name.lower() == "store":
        digest = blake2b(template.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
        name = f"{name or 'model'}-{digest}"
    return check_run(name)
