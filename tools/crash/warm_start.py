"""Compiles statements in the process that children are forked from, which imports this module last.

The objects that exist by then are frozen: otherwise the garbage collector of each child would visit all of them, and
so copy the memory that holds them.
"""

from __future__ import annotations

import gc

from crash import precompile

precompile.warm_up()
gc.collect()
gc.freeze()
