"""Checks of names and numbers that callers pass: runs, tags, metrics, positions, extra data."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from ckptstore.errors import InvalidArgumentError

_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+@-]*")
_MAX_RUN_LENGTH = 100
_MAX_TAG_LENGTH = 200
_MAX_METRIC_LENGTH = 200
_RESERVED_TAGS = frozenset({"latest", "resume-point", "best"})
# "store" would share its lock file, locks/store.lock, with the store itself.
_RESERVED_RUNS = frozenset({"store"})
# The largest value of an INTEGER column, in SQLite as in PostgreSQL.
_MAX_INTEGER = 2**63 - 1


def check_run(run: object) -> str:
    """Return `run` if it can name a run.

    A run's name becomes part of file names: 1 to 100 ASCII letters, digits and ``_ . = + @ -``, not beginning
    with a sign, without ``..`` and not ending in ``.weights``.

    Raises:
        InvalidArgumentError: It cannot.

    Example:
        >>> check_run("digits-lr=0.1")
        'digits-lr=0.1'
        >>> check_run("../x")
        Traceback (most recent call last):
        ...
        ckptstore.errors.InvalidArgumentError: run='../x': ...
    """
    if not isinstance(run, str):
        raise InvalidArgumentError(argument="run", value=run, reason="must be a string")
    if len(run) > _MAX_RUN_LENGTH:
        raise InvalidArgumentError(
            argument="run",
            value=run,
            reason=f"is {len(run)} characters long; at most {_MAX_RUN_LENGTH} fit a file name",
        )
    if not _RUN.fullmatch(run) or ".." in run or run.endswith(".weights"):
        raise InvalidArgumentError(
            argument="run",
            value=run,
            reason="may hold ASCII letters, digits and _ . = + @ -, begins with a letter, digit or _, holds no '..' "
            "and does not end in '.weights'",
            hint=_similar_run(run),
        )
    if run.lower() in _RESERVED_RUNS:
        raise InvalidArgumentError(argument="run", value=run, reason="is reserved for the store's own lock")
    return run


def _similar_run(run: str) -> str:
    """Return a hint that gives a name which is as much like `run` as a run's may be; empty if nothing is left of it."""
    plain = unicodedata.normalize("NFKD", run).encode("ascii", "ignore").decode()
    similar = re.sub(r"[^A-Za-z0-9_.=+@-]+", "_", re.sub(r"\.\.+", ".", plain)).strip("_.-+=@")
    similar = similar.removesuffix(".weights")
    return f"for example {similar!r}" if _RUN.fullmatch(similar) else ""


def check_tag(tag: object) -> str:
    """Return `tag` if it can name a checkpoint.

    Raises:
        InvalidArgumentError: It is empty, too long, has control characters, or reads as another kind of ref.

    Example:
        >>> check_tag("production")
        'production'
    """
    if not isinstance(tag, str):
        raise InvalidArgumentError(argument="tag", value=tag, reason="must be a string")
    _check_text("tag", tag, _MAX_TAG_LENGTH)
    if tag.isdecimal() or tag in _RESERVED_TAGS or tag.startswith("best:"):
        raise InvalidArgumentError(
            argument="tag",
            value=tag,
            reason="reads as another ref (a version, latest, resume-point, best:METRIC)",
        )
    return tag


def check_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Return metrics as plain floats.

    Any scalar is accepted: Python and numpy numbers, bools, 0-d tensors of any backend, arrays of one element.
    NaN and infinities are kept.

    Raises:
        InvalidArgumentError: A name is not a usable string, or a value is not one real number.

    Example:
        >>> check_metrics({"loss": 1, "ok": True})
        {'loss': 1.0, 'ok': 1.0}
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise InvalidArgumentError(
            argument="metrics", value=metrics, reason="must be a mapping of names to numbers"
        )
    return {check_metric_name(name): _number(name, value) for name, value in metrics.items()}


def check_metric_name(name: object, argument: str = "metric") -> str:
    """Return `name` if it can name a metric: any text of 1 to 200 characters without control characters.

    Args:
        name: The value that the caller passed.
        argument: The name of the caller's argument, for the error.

    Raises:
        InvalidArgumentError: It cannot.
    """
    if not isinstance(name, str):
        raise InvalidArgumentError(argument=argument, value=name, reason="must be a string")
    _check_text(argument, name, _MAX_METRIC_LENGTH)
    return name


def check_position(epoch: object, batch: object = None, step: object = None) -> None:
    """Check a position: `epoch` an integer of 0 or more, `batch` and `step` too, or None.

    Raises:
        InvalidArgumentError: One of them is something else.
    """
    for argument, value, optional in (("epoch", epoch, False), ("batch", batch, True), ("step", step, True)):
        if value is None and optional:
            continue
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise InvalidArgumentError(argument=argument, value=value, reason="must be an integer")
        if not 0 <= value.__index__() <= _MAX_INTEGER:
            raise InvalidArgumentError(argument=argument, value=value, reason="must be 0 or more, in 63 bits")


def check_extra(extra: object) -> dict[str, Any] | None:
    """Return `extra` if it is a JSON object.

    Raises:
        InvalidArgumentError: It is not a mapping, or holds what JSON cannot.
    """
    if extra is None:
        return None
    if not isinstance(extra, Mapping):
        raise InvalidArgumentError(argument="extra", value=extra, reason="must be a mapping of JSON values")
    try:
        loaded: dict[str, Any] = json.loads(json.dumps(dict(extra), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(argument="extra", value=extra, reason=f"must be JSON: {error}") from error
    return loaded


def check_objects(
    objects: Mapping[str, Any] | None, *, weights_only: bool = False, resumable: bool = True
) -> Mapping[str, Any] | None:
    """Return ``objects=`` if it is a dict of objects by name, for a checkpoint that carries training state.

    Raises:
        InvalidArgumentError: It is something else, or the checkpoint carries none.

    Example:
        >>> check_objects([1])
        Traceback (most recent call last):
        ...
        ckptstore.errors.InvalidArgumentError: objects=[1]: must be a dict of objects by name
    """
    if objects is None:
        return None
    if not isinstance(objects, Mapping) or not all(isinstance(name, str) for name in objects):
        raise InvalidArgumentError(
            argument="objects", value=objects, reason="must be a dict of objects by name"
        )
    if weights_only or not resumable:
        raise InvalidArgumentError(
            argument="objects",
            value=sorted(objects),
            reason="is part of the training state, which weights_only=True and resumable=False leave out",
        )
    return objects


def _check_text(argument: str, text: str, max_length: int) -> None:
    if not text or text != text.strip() or not text.isprintable():
        raise InvalidArgumentError(
            argument=argument, value=text, reason="must be printable text without spaces at its ends"
        )
    if len(text) > max_length:
        raise InvalidArgumentError(
            argument=argument, value=text, reason=f"is longer than {max_length} characters"
        )


def _number(name: object, value: Any) -> float:
    shape = getattr(value, "shape", ())
    size = 1
    for dimension in tuple(shape):
        size *= int(dimension)
    if size != 1:
        raise InvalidArgumentError(
            argument=f"metrics[{name!r}]",
            value=value,
            reason=f"has shape {tuple(shape)}; one number is needed",
        )
    if isinstance(value, str | bytes | complex) or value is None:
        raise InvalidArgumentError(argument=f"metrics[{name!r}]", value=value, reason="is not a real number")
    try:
        return float(value.item() if shape and hasattr(value, "item") else value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgumentError(
            argument=f"metrics[{name!r}]", value=value, reason=f"is not a real number: {error}"
        ) from error
