"""Saving beside the training: a snapshot is copied once into shared memory, and another process does the rest.

Main door: `save_queue`. From the bottom up: `handoff` (ownership of a slot), `message` (a snapshot and its request as
bytes in shared memory), `worker` (commits messages), `process` and `thread` (where a worker runs), `process_loop` and
`__main__` (the worker's process), `save_queue` (two slots: one being saved, one waiting).

May import: commit, formats, manifest, retention, storage, system and the words.
"""
