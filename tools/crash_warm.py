"""Imported by the process that children are forked from: what they begin with is compiled there, once."""

from __future__ import annotations

import crash_statements

crash_statements.warm()
