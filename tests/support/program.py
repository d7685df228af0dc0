"""A row of the table of programs: what a program is like, where it can run, and what is expected of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field

EVERY = ("jax", "torch", "tensorflow")


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program's row in the table: by default the bits are equal and there is no warning.

    Attributes:
        kind: What it is like.
        backends: Those that it can run on.
        needs: A package without which it is left out.
        says: By backend, parts of the warnings that it must cause, and no others.
        inexact: Backends on which it may differ after a resume, since a warning says so.
        compares: The names that are compared; by default everything that the script leaves.
        quick: Backends on which it runs with the suite.
    """

    kind: str
    backends: tuple[str, ...] = EVERY
    needs: str = ""
    says: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    inexact: tuple[str, ...] = ()
    compares: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()

    @property
    def can_run(self) -> bool:
        """True if what it needs is installed."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None


# What is said of a model that cannot make its configuration.
AS_WEIGHTS = dict.fromkeys(EVERY, ("is not serialisable as a whole",))
