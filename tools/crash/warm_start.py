"""Imported by the process that children are forked from, last: what they begin with is compiled there, once.

What is there by then stays: else each child would look through all of it, and copy the memory that it lies in.
"""

from __future__ import annotations

import gc

from crash import precompile

precompile.warm()
gc.collect()
gc.freeze()
