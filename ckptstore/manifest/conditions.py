"""Conditions on checkpoints, as text: parsed by Python's own grammar into records; the text is never part of any SQL.

    val_loss < 0.3 and epoch >= 5
    (accuracy > 0.9 or not pinned) and "production" in tags
    metric["odd name"] >= 1e-3 and run in ("a", "b") and created_at >= "2026-05-01" and batch is None

A bare name is a field of the checkpoint, or else a metric. A checkpoint that lacks a metric, or whose value is NaN,
meets neither a comparison of it nor the opposite comparison.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from ckptstore.errors import InvalidArgumentError

Kind = Literal["number", "text", "flag", "time"]
Operator = Literal["<", "<=", ">", ">=", "==", "!="]
Value = float | int | str | bool | datetime

FIELDS: dict[str, Kind] = {
    "version": "number",
    "run": "text",
    "epoch": "number",
    "batch": "number",
    "step": "number",
    "nbytes": "number",
    "blocked_s": "number",
    "total_s": "number",
    "created_at": "time",
    "format": "text",
    "state": "text",
    "digest": "text",
    "pinned": "flag",
    "resumable": "flag",
}
_MAX_CHARACTERS = 2000
_MAX_INTEGER = 2**63 - 1
_OPERATORS: dict[type[ast.cmpop], Operator] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the checkpoint."""

    name: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of the checkpoint."""

    name: str


Term = Field | Metric


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison of a field or metric with another, or with a value."""

    left: Term
    operator: Operator
    right: Term | Value


@dataclass(frozen=True, slots=True)
class OneOf:
    """A field or metric that is one of several values."""

    term: Term
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Absent:
    """A field or metric that a checkpoint does not have."""

    term: Term


@dataclass(frozen=True, slots=True)
class Tagged:
    """A tag that a checkpoint has."""

    name: str


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of a condition."""

    part: Condition


@dataclass(frozen=True, slots=True)
class Joined:
    """Several conditions: all of them must hold, or any."""

    parts: tuple[Condition, ...]
    every: bool


Condition = Comparison | OneOf | Absent | Tagged | Not | Joined


def parse(text: str) -> Condition:
    """Parse a condition.

    Raises:
        InvalidArgumentError: It is not a condition on checkpoints; the message says which part is not.

    Example:
        >>> parse("val_loss < 0.3")
        Comparison(left=Metric(name='val_loss'), operator='<', right=0.3)
    """
    if not isinstance(text, str) or not text.strip():
        raise InvalidArgumentError(
            argument="where", value=text, reason="must be a condition as text", hint=_HINT
        )
    if len(text) > _MAX_CHARACTERS:
        raise InvalidArgumentError(
            argument="where", value=text, reason=f"is longer than {_MAX_CHARACTERS} characters"
        )
    parser = _Parser(text)
    try:
        return parser.condition(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, InvalidArgumentError):
            raise
        raise parser.refusal(f"is no condition ({getattr(error, 'msg', None) or error})") from error


def parse_order(text: str) -> tuple[Term, bool]:
    """Parse a sort order: a field or metric, with ``-`` before it if the greatest comes first.

    Returns:
        The field or metric, and True if the greatest comes first.

    Raises:
        InvalidArgumentError: It is something else.

    Example:
        >>> parse_order("-val_accuracy")
        (Metric(name='val_accuracy'), True)
    """
    parser = _Parser(text if isinstance(text, str) else repr(text), argument="order_by")
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError, AttributeError, TypeError) as error:
        raise parser.refusal("is neither a field nor a metric") from error
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return parser.term(node.operand), True
    return parser.term(node), False


_HINT = 'such as: val_loss < 0.3 and epoch >= 5; a metric of any name is metric["name"]'
_HINTS = {"where": _HINT, "order_by": 'such as: val_loss, -val_accuracy, epoch, metric["odd name"]'}


class _Parser:
    """Parses one text."""

    def __init__(self, text: str, argument: str = "where") -> None:
        self._text = text
        self._argument = argument

    def refusal(self, reason: str) -> InvalidArgumentError:
        """Return the error for a text with something wrong in it."""
        return InvalidArgumentError(
            argument=self._argument, value=self._text, reason=reason, hint=_HINTS[self._argument]
        )

    def condition(self, node: ast.expr) -> Condition:
        """Return the condition of a part of the text."""
        match node:
            case ast.BoolOp(op=operator, values=values):
                return Joined(tuple(map(self.condition, values)), every=isinstance(operator, ast.And))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Not(self.condition(operand))
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [left, *others]
                pairs = zip(sides, ops, sides[1:], strict=False)
                parts = tuple(self._comparison(*pair) for pair in pairs)
                return parts[0] if len(parts) == 1 else Joined(parts, every=True)
            case ast.Name(id=name) if FIELDS.get(name) == "flag":
                return Comparison(Field(name), "==", True)
        raise self.refusal(f"{self._source(node)} is no comparison")

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Condition:
        match op, right:
            case ast.In() | ast.NotIn(), ast.Name(id="tags"):
                found: Condition = Tagged(self._quoted_text(left))
                return Not(found) if isinstance(op, ast.NotIn) else found
            case ast.In() | ast.NotIn(), ast.Tuple(elts=items) | ast.List(elts=items):
                term = self.term(left)
                found = OneOf(term, tuple(self._value(item, term) for item in items))
                return Not(found) if isinstance(op, ast.NotIn) else found
            case ast.Is() | ast.IsNot() | ast.Eq() | ast.NotEq(), ast.Constant(value=None):
                found = Absent(self.term(left))
                return Not(found) if isinstance(op, ast.IsNot | ast.NotEq) else found
        operator = _OPERATORS.get(type(op))
        if operator is None:
            raise self.refusal(f"{self._source(left)} and {self._source(right)} cannot be compared like that")
        return self._compare(left, operator, right)

    def _compare(self, left: ast.expr, operator: Operator, right: ast.expr) -> Comparison:
        if not _is_term(left):
            if not _is_term(right):
                raise self.refusal(f"{self._source(left)} is neither a field nor a metric")
            swapped: dict[Operator, Operator] = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
            return self._compare(right, swapped.get(operator, operator), left)
        term = self.term(left)
        if _is_term(right):
            other = self.term(right)
            if _kind(other) != _kind(term):
                raise self.refusal(f"{self._source(left)} and {self._source(right)} are of different kinds")
            return Comparison(term, operator, other)
        return Comparison(term, operator, self._value(right, term))

    def term(self, node: ast.expr) -> Term:
        """Return the field or metric that a part of the text names."""
        match node:
            case ast.Name(id="tags"):
                raise self.refusal('a tag is asked for by: "name" in tags')
            case ast.Name(id=name):
                return Field(name) if name in FIELDS else Metric(name)
            case ast.Subscript(value=ast.Name(id="metric"), slice=ast.Constant(value=str(name))):
                return Metric(name)
        raise self.refusal(f"{self._source(node)} is neither a field nor a metric")

    def _quoted_text(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        raise self.refusal(f"{self._source(node)} is no text in quotation marks")

    def _value(self, node: ast.expr, term: Term) -> Value:
        sign = 1
        while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            sign, node = (-sign if isinstance(node.op, ast.USub) else sign), node.operand
        value = node.value if isinstance(node, ast.Constant) else None
        kind = _kind(term)
        if kind == "number" and isinstance(value, int | float) and not isinstance(value, bool):
            if isinstance(value, int) and value > _MAX_INTEGER:
                return math.inf * sign
            return value * sign
        if kind == "flag" and isinstance(value, bool):
            return value
        if kind == "text" and isinstance(value, str):
            return value
        if kind == "time" and isinstance(value, str):
            return self._time(value)
        raise self.refusal(f"{term.name} is compared with {self._source(node)}, which is no {kind}")

    def _time(self, text: str) -> datetime:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            wanted = "write it as 2026-05-01 or 2026-05-01T12:30:00+02:00"
            raise self.refusal(f"{text!r} is no time; {wanted}") from error
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    @staticmethod
    def _source(node: ast.expr) -> str:
        return ast.unparse(node)[:80]


def _is_term(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Subscript)


def _kind(term: Term) -> Kind:
    return FIELDS[term.name] if isinstance(term, Field) else "number"


def metrics_in(condition: Condition) -> Iterator[str]:
    """Yield the names of the metrics that a condition looks at."""
    match condition:
        case Joined(parts=parts):
            for part in parts:
                yield from metrics_in(part)
        case Not(part=part):
            yield from metrics_in(part)
        case Comparison(left=left, right=right):
            yield from (term.name for term in (left, right) if isinstance(term, Metric))
        case OneOf(term=Metric(name=name)) | Absent(term=Metric(name=name)):
            yield name
