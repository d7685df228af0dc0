"""Background saving: a snapshot is copied once into shared memory, and another process commits it.

Main door: `save_queue.SaveQueue`. From the bottom up: `handoff` (who owns a slot), `message` (a snapshot and its
request as bytes in shared memory), `worker` (commits messages), `joining_worker` (writes this process's members of
saves that process 0 commits), `worker_handle` (the trainer's view of a worker), `program` (the command that starts it),
`process` and `thread` (where a worker runs), `process_loop` and `__main__` (the worker process), `save_queue` (two
slots: one being saved, one waiting).

May import: commit, formats, manifest, storage, distributed, system and the words.
"""
