"""Saving beside the training: a snapshot is copied once into shared memory, and another process does the rest.

From the bottom up: `memory` (what both processes see), `token` (whose turn it is), `letter` (a snapshot and what is to
be done with it, as bytes in that memory), `worker` (commits letters), `process` and `thread` (where a worker runs),
`writer` and `program` (the worker's process), `ring` (two places for snapshots: one in the works, one waiting).
"""
